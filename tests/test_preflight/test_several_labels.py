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
