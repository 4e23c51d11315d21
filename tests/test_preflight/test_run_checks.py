"""Data, metrics and heads that do not belong together are told apart before the first step."""

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.evaluation import CrowdHumanMetric, OpenImagesMetric
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from PIL import Image
from small_runs import CLASSIFIER, DETECTOR, make_pictures
from torch.testing import assert_close

from rkan_mm.apis import runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine import RunError
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.building import building
from rkan_mm.preflight.monitors import figures_by_settings
from rkan_mm.preflight.trial import _figures


def named(kind, **settings):
    """A metric by its name, with nothing in it but settings."""
    return type(kind, (), dict(default_prefix=None, prefix=None, classwise=False, metric_items=None) | settings)()


@pytest.fixture
def shapes(small_data):
    return small_data / 'shapes'


@pytest.fixture
def train(shapes, tmp_path):
    (tmp_path / 'detector.py').write_text(DETECTOR)

    def run(*options, flags=()):
        return runner.train([str(tmp_path / 'detector.py'), '--work-dir', str(tmp_path / 'work'), *flags,
                             '--cfg-options', f'data_root={shapes}', *options])
    return run


NAMES = "('ring','disc','rectangle','triangle','star')"
CASES = {
    'classes in another order in val': (
        [f'val_dataloader.dataset.metainfo.classes={NAMES}'], 'metainfo.classes as ring, disc, rectangle, '),
    'classes in another order in test': (
        [f'test_dataloader.dataset.metainfo.classes={NAMES}'],
        r'train has the classes disc, .*, test has ring, disc, .*; they differ from number 0 on, and labels are num'),
    'classes as text': (
        ['train_dataloader.dataset.metainfo.classes=disc'],
        r"CocoDataset: classes is the text 'disc', and there is no such file; mm .*: classes=\('disc', \)"),
    'classes as in mmdet 2': (
        ['val_dataloader.dataset.metainfo.CLASSES=1', 'val_dataloader.dataset.metainfo.classes=None'],
        'metainfo has CLASSES, which mmdet 3 does not read: wr'),
    'a head of COCO': (
        ['model.bbox_head.num_classes=80'],
        r'model.bbox_head \(RetinaHead\) has num_classes=80; CocoDataset of the train has 5 \(disc, .*\). Set '
        'model.bbox_head.num_classes=5. To run all the same: --cfg-options preflight.classes=False'),
    'a head of fewer classes': (['model.bbox_head.num_classes=4'], 'has num_classes=4; CocoDataset of the train has 5'),
    'several files as in mmdet 2': (
        ["train_dataloader.dataset.ann_file=['annotations/train.json','annotations/val.json']"],
        "CocoDataset: ann_file is a list, and mmdet takes one file: write dict.type='ConcatDataset', datasets="),
    'a folder as in mmpretrain': (
        ['train_dataloader.dataset.data_prefix=train'],
        r"data_prefix is the text 'train', and mmdet takes names of folders: data_prefix=dict\(img='train'\), for XML"),
    'a mosaic of one picture': (
        ['train_dataloader.dataset.pipeline.3.type=Mosaic', 'train_dataloader.dataset.pipeline.3.prob=1.0'],
        "mix_results.*MultiImageMixDataset', dataset="),
    'an evaluator of another split': (
        ['val_evaluator.ann_file={data}/annotations/train.json'],
        'CocoMetric of the validation has other annotations than its data set: 2 of 2 images are not so in it'),
    'a part of the images': (
        ['val_dataloader.dataset.indices=1'],
        r'would count the objects of 1 images as missed, which its data set leaves out \(by filter_cfg or indices\)'),
    'masks from a model of boxes': (
        ["val_evaluator.metric=['bbox','segm']"],
        r"The validation would fail in CocoMetric, as a trial with .*\.png shows: KeyError: 'segm is not in results' "
        r'\(the model predicts no masks: leave segm out of metric\). To run all the same: .* preflight.trial=False'),
    'a figure that nothing gives': (
        ['default_hooks.checkpoint.save_best=coco/segm_mAP'],
        r'ResumableCheckpointHook\(save_best\) waits for coco/segm_mAP, and the validation gives coco/bbox_mAP, '),
    'a figure of which mmengine does not know what is good': (
        ['default_hooks.checkpoint.save_best=lvis/bbox_AP'],
        "Cannot infer the rule for key lvis/bbox_AP.* .write rule='greater', or 'less', beside save_best or monitor"),
    'early stopping by such a figure': (
        ['custom_hooks.0.type=EarlyStoppingHook', 'custom_hooks.0.monitor=coco/AP', 'custom_hooks.0.rule=greater'],
        r'EarlyStoppingHook\(monitor\) waits for coco/AP, and'),
    'a schedule by such a figure': (
        ['param_scheduler.type=mmengine.ReduceOnPlateauLR', 'param_scheduler.monitor=coco/AP'],
        r'param_scheduler\(monitor\) waits for coco/AP, and'),
    'a figure that a metric without a trial does not give': (
        ['val_evaluator.type=CrowdHumanMetric', "val_evaluator.metric=['AP','MR']", 'preflight.evaluator=False',
         'default_hooks.checkpoint.save_best=coco/bbox_mAP'],
        r'\(save_best\) waits for coco/bbox_mAP, and the validation gives crowd_human/mAP, crowd_human/mMR\. Name one'),
    'keys that the metric needs': (
        ["val_dataloader.dataset.pipeline.2.meta_keys=('img_path','ori_shape','img_shape','scale_factor')"],
        "The validation would fail in CocoMetric, as a trial .* KeyError: 'img_id'"),
    'an empty validation set': (
        ['val_dataloader.dataset.indices=0'], 'ValueError: need at least one array to concatenate .a data s'),
    'a check that does not exist': (['preflight.annotation=False'], 'preflight has no annotation; there are optio'),
}


@pytest.mark.parametrize('case', CASES)
def test_before_the_first_step(train, shapes, tmp_path, case):
    options, message = CASES[case]
    with pytest.raises(PreflightError, match=message):
        train(*(option.replace('{data}', str(shapes)) for option in options))
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize(('options', 'message'), [
    (dict(iou_thrs=(0.5, 0.75)), r'VOCMetric.*iou_thrs=\(0.5, 0.75\), and mmdet takes one number with a point, as'),
    (dict(iou_thrs=1), 'iou_thrs=1, and mmdet takes one number with a point'),
    (dict(scale_ranges=[(0, 32), (32, 96)]), r'scale_ranges=\[\(0, 32\), \(32, 96\)\], of whose figures mmdet can giv'),
    (dict(iou_thrs=[0.5, 0.75]), None),
])
def test_settings_at_which_the_metric_of_voc_would_stop_when_all_is_predicted(train, tmp_path, options, message):
    with (tmp_path / 'detector.py').open('a') as file:
        file.write("val_dataloader['dataset']['pipeline'].insert(2, load[1])\n"
                   f"val_evaluator = dict(type='VOCMetric', **{options})\n")
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        train()


@pytest.mark.parametrize(('metric', 'figures'), [
    (OpenImagesMetric(iou_thrs=[0.5, 0.75], ioa_thrs=[0.5, 0.5]), 'AP50 AP75 mAP'),
    (CrowdHumanMetric('val.odgt', metric='JI'), 'JI'),
    (named('LVISMetric', metrics=['bbox', 'segm'], metric_items=['AP', 'AR@300']),
     'bbox_AP bbox_AR@300 segm_AP segm_AR@300'),
    (named('LVISMetric', metrics=['bbox']), 'bbox_AP bbox_AP50 bbox_AP75 bbox_APs bbox_APm bbox_APl bbox_APr bbox_APc '
     'bbox_APf'),
    (named('LVISMetric', metrics=['proposal']), None),
    (named('LVISMetric', metrics=['bbox'], classwise=True), None),
    (named('CityScapesMetric'), 'mAP AP@50'),
    (named('VOCMultiLabelMetric'), None),
])
def test_figures_by_settings(metric, figures):
    prefix = metric.default_prefix
    found = figures_by_settings(metric)
    assert found is figures is None or [*found] == [f'{prefix}/{name}' if prefix else name for name in figures.split()]


def test_a_test_that_follows_is_looked_at_before_the_training(train, shapes):
    options = ["test_evaluator.metric=['bbox','segm']"]
    with pytest.raises(PreflightError, match='The test would fail in CocoMetric'):
        train(*options, flags=['--test'])
    with pytest.raises(PreflightError, match='The config has no test_dataloader, test_evaluator and test_cfg: to test'):
        train('test_dataloader=None', 'test_evaluator=None', 'test_cfg=None', flags=['--test'])


def test_the_trial_leaves_no_trace(train, capsys):
    with_trial = train(flags=['--no-validate'])
    printed = capsys.readouterr().out
    figures = train('default_hooks.checkpoint.save_best=coco/bbox_mAP')
    without = train('preflight.trial=False')
    for each in (figures, without):
        assert_close(each.model.state_dict(), with_trial.model.state_dict(), rtol=0, atol=0)
    assert 'bbox_mAP' not in printed
    assert capsys.readouterr().out.count('Evaluating bbox...') == 2  # of one validation in each run, not of a trial
    assert figures.val_evaluator.metrics[0].img_ids == [1, 2]


PICTURES = {  # what OpenCV writes, by the shape and depth of the array
    'grey': lambda picture: picture[..., 0],
    '16-bit': lambda picture: picture.astype(np.uint16) * 257,
    'transparent': lambda picture: np.dstack([picture, picture[..., 0]]),
}


@pytest.mark.parametrize('kind', [*PICTURES, 'palette'])
def test_pictures_boxes_and_ids_that_just_work(train, tmp_path, kind):
    """Pictures of several sizes and kinds, boxes with fractions, and ids of categories with gaps."""
    data = make_shapes(tmp_path / 'shapes', num_train=2, num_val=2, size=64)
    for split in ('train', 'val'):
        file = data / f'annotations/{split}.json'
        content = json.loads(file.read_text())
        for i, image in enumerate(content['images']):
            path = data / split / image['file_name']
            picture = cv2.copyMakeBorder(cv2.imread(str(path)), 0, 16 * i, 0, 8, cv2.BORDER_REFLECT)
            image['height'], image['width'] = picture.shape[:2]
            if kind == 'palette':
                Image.fromarray(picture).convert('P').save(path)
            else:
                cv2.imwrite(str(path), PICTURES[kind](picture))
        for annotation in content['annotations']:
            annotation['bbox'] = [side + 0.25 for side in annotation['bbox']]
            annotation['category_id'] = 10 * annotation['category_id'] - 10
        for category in content['categories']:
            category['id'] = 10 * category['id'] - 10
        file.write_text(json.dumps(content))
    runner = train(f'data_root={data}')
    assert runner.iter == 1
    assert runner.train_dataloader.dataset[0]['inputs'].shape[0] == 3
    labels = {label for i in (0, 1) for label in
              runner.train_dataloader.dataset[i]['data_samples'].gt_instances.labels.tolist()}
    names = {annotation['category_id'] // 10 for annotation in json.loads(
        (data / 'annotations/train.json').read_text())['annotations']}
    assert labels == names


def test_a_checkpoint_that_learned_the_classes_in_another_order(train, shapes, tmp_path):
    train(flags=['--no-validate'])
    content = json.loads((shapes / 'annotations/val.json').read_text())
    content['categories'].reverse()
    (tmp_path / 'reversed.json').write_text(json.dumps(content))
    names = str(tuple(category['name'] for category in content['categories'])).replace(' ', '')
    other = tmp_path / 'reversed.json'
    with pytest.raises(PreflightError, match='the checkpoint has the classes disc, .*, the data of the test has'):
        runner.test([str(tmp_path / 'detector.py'), str(tmp_path / 'work/epoch_1.pth'), '--work-dir', str(tmp_path),
                     '--cfg-options', f'data_root={shapes}', f'test_dataloader.dataset.ann_file={other}',
                     f'test_evaluator.ann_file={other}',
                     *(f'{split}_dataloader.dataset.metainfo.classes={names}' for split in ('train', 'val', 'test'))])


@pytest.fixture
def classify(tmp_path):
    make_pictures(tmp_path / 'pictures')
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    return lambda *options: runner.train([
        str(tmp_path / 'classifier.py'), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
        f'data_root={tmp_path / "pictures"}', *options])


def test_a_class_folder_that_val_lacks(classify, tmp_path):
    shutil.rmtree(tmp_path / 'pictures/val/dog')
    with pytest.raises(PreflightError, match='the data of the train has the classes cat, dog, owl, the data of the '
                                             'validation has cat, owl; they differ from number 1 on'):
        classify()


def test_more_places_than_classes(classify):
    with pytest.raises(PreflightError, match=r'would fail in Accuracy, .* \(topk is more than there are classes: lo'):
        classify('val_evaluator.topk=(1,5)')


def test_a_classifiers_head_of_more_classes_is_warned_about(classify, monkeypatch):
    warnings = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *args: warnings.append(text), raising=False)
    classify('model.head.num_classes=1000')
    assert any('head (LinearClsHead) has num_classes=1000, CustomDataset of the train has 3 classes (cat, dog, owl)'
               in text for text in warnings)
    assert logging.getLogger().level <= logging.WARNING


def test_other_images_with_the_same_ids(train, shapes, tmp_path):
    """The json of another split, whose images are numbered from 1 as well."""
    content = json.loads((shapes / 'annotations/val.json').read_text())
    for image in content['images']:
        image['file_name'] = f'x{image["file_name"]}'
    (tmp_path / 'other.json').write_text(json.dumps(content))
    with pytest.raises(PreflightError, match='2 of 2 images are not so in its ann_file'):
        train(f'val_evaluator.ann_file={tmp_path / "other.json"}')

@pytest.mark.parametrize(('error', 'sentence'), [
    ("[Errno 122] Disk quota exceeded: 'work/summary.json'", 'The disk is full, or your quota of it: make room, then'),
    ('[Errno 28] No space left on device', 'The disk is full, or your quota of it: make room'),
    ("[Errno 24] Too many open files: '/tmp/pymp-1'", 'Too many files are open at once: run ulimit -n 65536 first'),
    ('received 0 items of ancdata', 'Too many files are open at once'),
    ('CUDA out of memory. Tried to allocate 2.00 GiB', 'Out of memory: lower train_dataloader.batch_size, then go on'),
    ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", 'Out of memory'),
    ('[Errno 12] Cannot allocate memory', 'Out of memory: lower'),
    ('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`', 'Out of memory: lower'),
    ('unable to allocate shared memory(shm) for file: Cannot allocate memory (12)', 'A worker that loads data was'),
    ('matrix is singular', None),
])
def test_in_the_midst_of_a_run(error, sentence):
    """What its user can mend is a sentence; other errors of a run stay as they are."""
    with pytest.raises(RunError if sentence else OSError, match=sentence or error), building('It', lambda: True):
        raise OSError(error)


@pytest.mark.parametrize('error', [
    "No module named 'mmcv._ext'",  # mmcv-lite, or what pip builds in isolation
    '/site-packages/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c104cuda9SetDeviceEi',
    'DLL load failed while importing _ext: The specified procedure could not be found.'])
def test_operations_of_mmcv_that_are_not_there(error):
    with pytest.raises(PreflightError, match='mmcv is without compiled operations, or'), building('It cannot be built'):
        raise ImportError(error)


@pytest.mark.parametrize('dtype', ['BFloat16', 'Half'])
def test_operations_of_mmcv_without_half_precision(dtype):
    with pytest.raises(PreflightError, match='RoIAlign on a CPU: leave --amp out'), building('It'):
        raise RuntimeError(f'expected scalar type Float but found {dtype}')


def test_a_metric_that_draws_leaves_nothing_behind(tmp_path):
    """CocoPanopticMetric has a folder for its maps from the beginning."""
    def draw(metric, batch, outputs):
        (Path(metric.seg_out_dir) / 'map.png').write_text('')

    panoptic = type('CocoPanopticMetric', (BaseMetric,), dict(
        __module__='mmdet.evaluation', process=draw, compute_metrics=lambda metric, results: dict(PQ=1.0)))()
    panoptic.seg_out_dir = str(tmp_path)
    assert _figures(panoptic, None, [], judged=True) == dict(PQ=1.0)
    assert panoptic.seg_out_dir == str(tmp_path)
    assert not [*tmp_path.iterdir()]
