"""Pictures of several labels, before a training of a classifier begins."""

import json
from contextlib import nullcontext

import pytest
from mmengine.registry import DATASETS, init_default_scope
from small_runs import CLASSIFIER

from rkan_mm.preflight import PreflightError, datasets

SEVERAL = """
for split, loader in (('train', train_dataloader), ('val', val_dataloader)):
    loader['dataset'].update(type='MultiLabelDataset', ann_file=f'{folder}/{split}.json')
model['head'] = dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=32)
val_evaluator = test_evaluator = dict(type='AveragePrecision')
"""


CLASSES = "for loader in (train_dataloader, val_dataloader):\n    loader['dataset']['classes'] = {}\n"
OTHERWISE = {
    'classes of another order': (
        CLASSES.format("('owl', 'dog', 'cat')"),
        'metainfo of .*train.json has the classes cat, dog, owl, the config has owl, dog, cat; they differ'),
    'categories of another order': (
        CLASSES.format("('a', 'c', 'b')"),
        'metainfo of .*val.json has the classes a, b, c, the config has a, c, b; they differ from number 1 on'),
    'a metric of difficult labels': ("val_evaluator = dict(type='VOCAveragePrecision')\n", 'in VOCAveragePrecision, .*'
                                     "KeyError: 'gt_label_difficult' .PackInputs of its pipeline does not keep it"),
    'other names': (CLASSES.format("('A', 'b', 'c')"), None),
    'a head of one label': ("model['head'] = dict(type='LinearClsHead', num_classes=3, in_channels=32, topk=(1, ))\n",
                            'Expected input batch_size .* take MultiLabelLinearClsHead'),
}


@pytest.mark.parametrize('case', OTHERWISE)
def test_lists_of_several_labels(printed, tmp_path, case):
    """Labels are numbers of the classes in their json, though a config that names classes renames them."""
    lines, message = OTHERWISE[case]
    pictures = [dict(img_path='cat/0.png', gt_label=[0, 1]), dict(img_path='dog/0.png', gt_label=[2])]
    classes = dict(classes=['cat', 'dog', 'owl']) if 'owl' in lines or 'VOC' in lines else {}
    categories = dict(categories=[dict(id=i, category_name=name) for i, name in ((2, 'c'), (0, 'a'), (1, 'b'))])
    for name in ('train', 'val'):
        meta = categories if name == 'val' and not classes else classes
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(metainfo=meta, data_list=pictures)))
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        printed(CLASSIFIER, SEVERAL.replace('{folder}', str(tmp_path)) + lines)


def test_a_json_is_read_again_for_classes_of_the_config_alone(tmp_path, monkeypatch):
    (tmp_path / 'list.json').write_text(json.dumps(dict(metainfo=dict(classes=['a']), data_list=[])))
    given = dict(type='MultiLabelDataset', ann_file=str(tmp_path / 'list.json'))
    init_default_scope('mmpretrain')
    for more in (dict(classes=['b']), dict(metainfo=dict(classes=['b'])), {}):
        built = DATASETS.build(dict(given, **more, lazy_init=True))
        if not more:
            monkeypatch.setattr(datasets, 'load', None)
        found = datasets.names_written(built, dict(dataset=dict(given, **more)))
        assert list(found.values()) == ([('a',), ('b',)] if more else [])


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pictures_of_several_labels(printed, tmp_path, split):
    content = dict(metainfo=dict(classes=['cat', 'dog', 'owl']), data_list=[
        dict(img_path='cat/0.png', gt_label=[0, 1]), dict(img_path='dog/0.png', gt_label=[2])])
    for name in ('train', 'val'):
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    lines = SEVERAL.replace('{folder}', str(tmp_path))
    assert 'has no images of' not in printed(CLASSIFIER, lines)
    content['data_list'][1]['gt_label'] = [0, 1]
    (tmp_path / f'{split}.json').write_text(json.dumps(content))
    told = 'which cannot be learned' if split == 'train' else 'which means over classes count as 0'
    assert f'has no images of 1 of 3 classes (owl), {told}.' in printed(CLASSIFIER, lines)
    content['data_list'][1]['gt_label'] = [2, 3, 4]
    (tmp_path / f'{split}.json').write_text(json.dumps(content))
    with pytest.raises(PreflightError, match='dog/0.png has the label 3, but .* num_classes=3 .*; 1 of 2 images'):
        printed(CLASSIFIER, lines)


@pytest.mark.parametrize(('labels', 'message'), [
    ([[1, 0, 0], [0, 1, 1]], r'0.png is \[1, 0, 0\], a 0 or a 1 for each class, .* write \[0\], or call it gt_score'),
    ([[1, 0], [0, 1]], r'0.png is \[1, 0\], a 0 or a 1 for each class'),
    ([[0, 1], [0, 1]], None),
    ([['cat'], ['dog', 'owl']], "too many dimensions 'str' .gt_label is of numbers of classes, not of their names"),
])
def test_labels_that_are_no_numbers_of_classes(printed, tmp_path, labels, message):
    classes = ['cat', 'dog', 'owl'][:2 if len(labels[0]) == 2 else 3]
    pictures = [dict(img_path=f'{name}/0.png', gt_label=each) for name, each in zip(classes, labels, strict=False)]
    for name in ('train', 'val'):
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(metainfo=dict(classes=classes), data_list=pictures)))
    lines = SEVERAL.replace('{folder}', str(tmp_path)).replace('num_classes=3', f'num_classes={len(classes)}')
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        printed(CLASSIFIER, lines)


@pytest.mark.parametrize('kind', ['MultiLabelDataset', 'BaseDataset'])
def test_a_picture_without_a_label_among_others(printed, tmp_path, kind):
    """It would end the run when its batch comes."""
    several = kind == 'MultiLabelDataset'
    pictures = [dict(img_path=f'{name}/0.png', gt_label=[i] if several else i) for i, name in enumerate(('cat', 'dog'))]
    for name, more in (('train', [dict(img_path='owl/0.png')]), ('val', [])):
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(
            metainfo=dict(classes=['cat', 'dog', 'owl']), data_list=pictures + more)))
    lines = SEVERAL.replace('{folder}', str(tmp_path)).replace('MultiLabelDataset', kind)
    if not several:
        lines = lines.split("model['head']")[0]
    with pytest.raises(PreflightError, match=f'{kind}: .*owl/0.png has no gt_label, 1 of 3 pictures: write it'):
        printed(CLASSIFIER, lines)


TASKS = """
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackMultiTaskInputs', multi_task_fields=('gt_label',))]
model['head'] = dict(type='MultiTaskHead', in_channels=32, task_heads=dict(
    animal=dict(type='LinearClsHead', num_classes=3), asleep=dict(type='LinearClsHead', num_classes=2)))
for split, loader in (('train', train_dataloader), ('val', val_dataloader)):
    loader['dataset'] = dict(type='MultiTaskDataset', ann_file=f'{folder}/{split}.json', pipeline=pipeline,
                             data_root=f'{data_root}/{split}')
val_evaluator = dict(type='MultiTasksMetric', task_metrics=dict(animal=[dict(type='Accuracy')],
                                                                asleep=[dict(type='Accuracy')]))
"""
TOP = "val_evaluator['task_metrics']['asleep'] = [dict(type='Accuracy', topk=(1, 5))]\n"
OTHER = "val_evaluator['task_metrics']['awake'] = [dict(type='Accuracy')]\n"
BEST = "default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='{}accuracy/top1'))\n"
WEAR = "model['head']['task_heads']['asleep'] = dict(type='MultiLabelLinearClsHead', num_classes=3)\n"
OF_TASKS = {  # labels of pictures, lines of the config, and what is said: an error, or in red
    'whole': ([dict(animal=0, asleep=1), dict(animal=1)], BEST.format('animal_'), None, None),
    'a metric of no task': ([dict(animal=0, asleep=1)], OTHER, "the task 'awake', and the heads .* are for animal, as",
                            None),
    'too many places': ([dict(animal=0, asleep=1)], TOP, 'Top-5 accuracy is unavailable .*lower it', None),
    'a figure of no task': ([dict(animal=0, asleep=1)], BEST.format(''), 'and the validation gives animal_accuracy/top1'
                            ', asleep_accuracy/top1', None),
    'a label too many': ([dict(animal=0, asleep=0), dict(animal=1, asleep=2)], '', "Dataset, task 'asleep': .*dog/0.png"
                         ' has the label 2, but .* num_classes=2', None),
    'a label for each class': ([dict(animal=0, asleep=[1, 0, 1]), dict(animal=1, asleep=[0, 0, 1])], WEAR,
                               r"task 'asleep': the gt_label of .*cat/0.png is \[1, 0, 1\], a 0 or a 1 for", None),
    'no label': ([dict(animal=0), dict(animal=1)], '', None, "of the train has no label for the task 'asleep' of the h"
                 'ead, but for animal: it cannot be learned.'),
}


@pytest.mark.parametrize('case', OF_TASKS)
def test_several_tasks(printed, tmp_path, case):
    labels, lines, message, told = OF_TASKS[case]
    pictures = [dict(img_path=f'{name}/0.png', gt_label=each) for name, each in zip(
        ('cat', 'dog'), (labels * 2)[:2], strict=True)]
    for name in ('train', 'val'):
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(metainfo={}, data_list=pictures)))
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        assert ('has no label for the task' in (out := printed(
            CLASSIFIER, TASKS.replace('{folder}', str(tmp_path)) + lines))) is bool(told)
        assert not told or told in out


def test_pictures_of_tasks_that_are_not_there(printed, tmp_path):
    pictures = [dict(img_path=name, gt_label=dict(animal=0, asleep=0)) for name in ('cat/0.png', 'cat/gone.png')]
    for name in ('train', 'val'):
        (tmp_path / f'{name}.json').write_text(json.dumps(dict(metainfo={}, data_list=pictures)))
    with pytest.raises(PreflightError, match='MultiTaskDataset of the train: .*cat/gone.png is not there'):
        printed(CLASSIFIER, TASKS.replace('{folder}', str(tmp_path)))


@pytest.mark.parametrize(('metric', 'message'), [
    ("type='SingleLabelMetric', average='weighted'", 'in SingleLabelMetric, .*Invalid `average` argument'),
    ("type='MultiLabelMetric', average='samples'", 'in MultiLabelMetric, .*Invalid `average` argument'),
    ("type='AveragePrecision', average='micro'", 'in AveragePrecision, .*Invalid `average` argument'),
    ("type='Accuracy', thrs=('0.5', )", "in Accuracy, .*not supported between instances of 'Tensor' and 'str'"),
    ("type='RetrievalRecall', topk=(1, 5)", 'in RetrievalRecall, .*topk is more than there are'),
    ("type='MultiLabelMetric', topk=1", None),
    ("type='MultiLabelMetric', topk=3", None),
    ("type='SingleLabelMetric', average='micro'", None),
])
def test_metrics_that_fail_at_their_end(printed, metric, message):
    """Their arguments are looked at when all is predicted."""
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        out = printed(CLASSIFIER, f'val_evaluator = dict({metric})\n')
        assert 'could not be checked' not in out
        assert 'will be 100' not in out
