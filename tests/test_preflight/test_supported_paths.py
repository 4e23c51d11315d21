"""What mm runs, runs: the checks before a run stop none of it."""

import json

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, FUNCTIONS, HOOKS, METRICS, MODELS, TRANSFORMS
from own_loop import SEVERAL
from small_runs import CLASSIFIER, DETECTOR
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from rkan_mm.apis import runner


@METRICS.register_module()
class MeanScore(BaseMetric):
    default_prefix = 'own'

    def process(self, data_batch, data_samples):
        self.results += [0.5] * len(data_samples)

    def compute_metrics(self, results):
        return dict(score=float(np.mean(results)))


@MODELS.register_module()
class PreparedPooling(torch.nn.Module):
    """For predictions it must be prepared by a hook."""

    ready = False

    def forward(self, x):
        assert self.training or self.ready, 'not prepared'
        return tuple(each.mean((2, 3)) for each in x)


@HOOKS.register_module()
class Prepare(Hook):
    def before_val(self, runner):
        runner.model.neck.ready = True


@HOOKS.register_module()
class PrepareOnce(Hook):
    def before_train(self, runner):
        runner.model.neck.ready = True


class Pictures(Dataset):
    """A data set of a user's own, in no way like mm's; ``data_root`` is no folder."""

    def __init__(self, data_root, classes=None):
        self.metainfo = dict(classes=('a', 'b', 'c'))

    def __len__(self):
        return 4

    def __getitem__(self, i):
        from mmpretrain.structures import DataSample
        return dict(inputs=torch.full((3, 32, 32), i, dtype=torch.uint8),
                    data_samples=DataSample().set_gt_label(i % 3))


@DATASETS.register_module()
class OwnPictures(Pictures):
    pass


@DATASETS.register_module()
class StreamedPictures(IterableDataset):
    def __init__(self):
        self.pictures = Pictures('')

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([self.pictures[i] for i in range(4)])


@DATASETS.register_module()
class WorkersPictures(Pictures):
    def __getitem__(self, i):
        assert get_worker_info() is not None, 'opens its file in a worker'
        return super().__getitem__(i)


@DATASETS.register_module()
class BatchedPictures(Pictures):
    def __getitems__(self, indices):
        return [dict(many=True, **self[i]) for i in indices]


@DATASETS.register_module()
class UnlikePictures(Pictures):
    def get_data_info(self, name):
        return dict(img_path=[f'{name}.png', None])


@FUNCTIONS.register_module()
def pairs(samples):
    assert len(samples) > 1, 'pairs'
    return pseudo_collate(samples)


@FUNCTIONS.register_module()
def many(samples):
    return pseudo_collate([dict(inputs=sample['inputs'], data_samples=sample['data_samples'])
                           for sample in samples if sample['many']])


@FUNCTIONS.register_module()
def together(samples):
    return default_collate([dict(inputs=sample['inputs']) for sample in samples]) | dict(
        data_samples=[sample['data_samples'] for sample in samples])


@TRANSFORMS.register_module()
class ToCoarse:
    def __call__(self, results):
        results['gt_label'] = min(results['gt_label'], 1)
        return results


def boxes_moved(content):
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        annotation['bbox'] = [x + 0.6, y + 0.6, width, height]
    return content


def an_image_more(content):
    content['images'].append(dict(id=99, file_name='99.png', height=64, width=64))
    return content


def empty(content):
    first = content['images'][0]['id']
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] != first]
    return content


@pytest.fixture(scope='module')
def shapes(small_data):
    """The drawn shapes, with changed annotations beside theirs."""
    folder = small_data / 'shapes'
    for change in (boxes_moved, an_image_more, empty):
        content = change(json.loads((folder / 'annotations/val.json').read_text()))
        (folder / f'annotations/{change.__name__}.json').write_text(json.dumps(content))
    return folder


DETECTORS = {
    'RepeatDataset': """
train_dataloader['dataset'] = dict(type='RepeatDataset', times=2, dataset=train_dataloader['dataset'])""",
    'ClassBalancedDataset': """
train_dataloader['dataset'] = dict(
    type='ClassBalancedDataset', oversample_thr=0.1, dataset=train_dataloader['dataset'])""",
    'ConcatDataset': """
train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[train_dataloader['dataset']] * 2)""",
    'MultiImageMixDataset': """
inner = dict(train_dataloader['dataset'], pipeline=load)
train_dataloader['dataset'] = dict(type='MultiImageMixDataset', dataset=inner, pipeline=[
    dict(type='Mosaic', img_scale=(64, 64)), dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)), scale,
    dict(type='PackDetInputs')])""",
    'a validation of wrapped data': """
val_dataloader = dict(val_dataloader, dataset=dict(type='ConcatDataset', datasets=[val_dataloader['dataset']]))""",
    'a batch sampler': "train_dataloader['batch_sampler'] = dict(type='AspectRatioBatchSampler')",
    'iterations': """
train_dataloader['sampler'] = dict(type='InfiniteSampler')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)""",
    'the test set of a base': """
test_dataloader = dict(test_dataloader, dataset=dict(
    type='CocoDataset', data_root='nowhere', ann_file='gone.json', metainfo=dict(classes=('car', 'disc', 'bus'))))""",
    'a validation that never comes': """
train_cfg['val_begin'] = 9
val_evaluator = dict(val_evaluator, metric=['bbox', 'segm'])""",
    'another metric that a hook waits for': """
val_evaluator = [val_evaluator, dict(type='MeanScore')]
default_hooks['checkpoint'].update(save_best='own/score', rule='greater')""",
    "a class's own figure": """
val_evaluator = dict(val_evaluator, classwise=True)
model['test_cfg'].update(score_thr=1.0)
default_hooks['checkpoint'].update(save_best='coco/disc_precision', rule='greater')""",
    'moving averages': "custom_hooks = [dict(type='EMAHook')]",
    'mended labels in the evaluator': """
val_evaluator = dict(val_evaluator, ann_file=f'{data_root}/annotations/boxes_moved.json')""",
    'an image without objects beside those of the data': """
val_evaluator = dict(val_evaluator, ann_file=f'{data_root}/annotations/an_image_more.json')""",
    'a first image without objects': """
val_dataloader = dict(val_dataloader, dataset=dict(val_dataloader['dataset'], ann_file='annotations/empty.json'))
val_evaluator = dict(val_evaluator, ann_file=f'{data_root}/annotations/empty.json')""",
    'labels of the data set itself, none in the first image': """
val_dataloader = dict(val_dataloader, dataset=dict(
    val_dataloader['dataset'], ann_file='annotations/empty.json', pipeline=[
        *load, scale, dict(type='PackDetInputs', meta_keys=(*keys, 'instances'))]))
val_evaluator = dict(type='CocoMetric', metric='bbox')""",
    "VOC's metric": """
val_dataloader = dict(val_dataloader, dataset=dict(
    val_dataloader['dataset'], ann_file='annotations/empty.json', pipeline=[
        *load, scale, dict(type='PackDetInputs', meta_keys=keys)]))
val_evaluator = dict(type='VOCMetric', metric='mAP')""",
    'several data sets in a loop of the user': SEVERAL,
    'names in both spellings': """
both = dict(classes=classes, CLASSES=classes)
train_dataloader['dataset'].update(metainfo=both)
val_dataloader = dict(val_dataloader, dataset=dict(val_dataloader['dataset'], metainfo=both))""",
}
OWN = "train_dataloader['dataset'] = dict(type='OwnPictures', data_root='lmdb:pictures')\n"
OWN_VAL = OWN + "val_dataloader = dict(val_dataloader, dataset=dict(type='OwnPictures', data_root='lmdb:pictures'))\n"
CLASSIFIERS = {
    'RepeatDataset': """
train_dataloader['dataset'] = dict(type='RepeatDataset', times=2, dataset=train_dataloader['dataset'])""",
    'ClassBalancedDataset': """
train_dataloader['dataset'] = dict(
    type='ClassBalancedDataset', oversample_thr=0.1, dataset=train_dataloader['dataset'])""",
    'KFoldDataset': """
fold = dict(type='KFoldDataset', dataset=train_dataloader['dataset'], num_splits=3, fold=0)
train_dataloader['dataset'] = fold
val_dataloader = dict(val_dataloader, dataset=dict(fold, test_mode=True))""",
    'data of the user': OWN_VAL,
    'data of the user for the training alone': OWN,
    'iterable data': """
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='StreamedPictures'))
val_dataloader = dict(val_dataloader, dataset=dict(type='OwnPictures', data_root=''))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
log_processor = dict(by_epoch=False)""",
    'data unlike those of mm': """
train_dataloader['dataset'] = dict(type='UnlikePictures', data_root='')
val_dataloader = dict(val_dataloader, dataset=dict(type='UnlikePictures', data_root=''))""",
    'iterable data for validation': """
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(type='StreamedPictures'))""",
    'data that only workers can read': """
val_dataloader = dict(val_dataloader, num_workers=1, dataset=dict(type='WorkersPictures', data_root=''))""",
    'whole batches': """
val_dataloader = dict(
    val_dataloader, dataset=dict(type='BatchedPictures', data_root=''), collate_fn=dict(type='many'))""",
    'a collate that takes pairs': OWN_VAL + "val_dataloader.update(collate_fn=dict(type='pairs'))",
    'a collate of its own': OWN_VAL + "val_dataloader.update(collate_fn=dict(type='together'))",
    'labels that a transform changes': """
model['head'].update(num_classes=2)
coarse = [dict(type='LoadImageFromFile'), dict(type='ToCoarse'), dict(type='PackInputs')]
train_dataloader['dataset'].update(pipeline=coarse)
val_dataloader = dict(val_dataloader, dataset=dict(val_dataloader['dataset'], pipeline=coarse))""",
    'a model that a hook prepares before each validation': """
model['neck'] = dict(type='PreparedPooling')
custom_hooks = [dict(type='Prepare')]""",
    'a model that a hook prepares before the training': """
model['neck'] = dict(type='PreparedPooling')
custom_hooks = [dict(type='PrepareOnce')]""",
    'several data sets in a loop of the user': SEVERAL,
    "another order of the test set's folders": """
test_dataloader = dict(test_dataloader, dataset=dict(test_dataloader['dataset'], classes=('dog', 'fox')))""",
    'more figures': """
val_evaluator = [val_evaluator, dict(type='SingleLabelMetric'), dict(type='ConfusionMatrix')]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='single-label/f1-score', rule='greater'))
custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1')]""",
}


@pytest.mark.parametrize('case', DETECTORS)
def test_detectors(shapes, tmp_path, case):
    run(tmp_path, DETECTOR.replace("'shapes'", repr(str(shapes))) + DETECTORS[case])


@pytest.mark.parametrize('case', CLASSIFIERS)
def test_classifiers(small_data, tmp_path, case):
    run(tmp_path, CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures'))) + CLASSIFIERS[case])


def run(folder, text):
    (folder / 'config.py').write_text(text)
    done = runner.train([str(folder / 'config.py'), '--work-dir', str(folder)])
    assert done.iter > 0
