"""Boxes and pictures that go apart within a pipeline are told in red; sizes that make no batch stop the run."""

import cv2
import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from small_runs import CLASSIFIER, DETECTOR, make_pictures

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.images import _makes_alike

TRAIN = "train_dataloader['dataset']['pipeline'] = [load[0], {}, dict(type='PackDetInputs')]\n"
VAL = "val_dataloader['dataset']['pipeline'] = [load[0], {}, dict(type='PackDetInputs', meta_keys=keys)]\n"
KEPT = "dict(type='Resize', scale=(64, 64), keep_ratio=True)"
VOC = "val_evaluator = dict(type='VOCMetric', metric='mAP')\n"
RED = {
    'pictures are changed before their boxes are there': (
        TRAIN.format("scale, dict(type='RandomFlip', prob=0.5), load[1]"),
        'The pipeline of the train has LoadAnnotations behind Resize, RandomFlip: boxes stay where they were before. '
        'Put it directly behind the step that loads pictures.'),
    'so within a wrapper': (
        TRAIN.format("dict(type='RandomFlip', prob=0.5), load[1]")
        + "train_dataloader['dataset'] = dict(type='RepeatDataset', times=2, dataset=train_dataloader['dataset'])\n",
        'The pipeline of the train has LoadAnnotations behind RandomFlip: boxes'),
    'boxes that are judged by are changed': (
        VAL.format('load[1], scale') + VOC,
        'VOCMetric of the validation compares predictions in the picture as it was with boxes that Resize changes: put '
        'LoadAnnotations behind it.'),
    'proportions are kept in the train alone': (
        TRAIN.format(f'load[1], {KEPT}'),
        'Pictures keep their proportions in the train alone (keep_ratio of Resize): objects of the validation are of '
        'other shapes than those that are learned.'),
    'proportions are kept in the validation alone': (
        VAL.format(KEPT), 'Pictures keep their proportions in the validation alone (keep_ratio of Resize)'),
}
CALM = {
    'mmdet itself': TRAIN.format(f"load[1], {KEPT}, dict(type='RandomFlip', prob=0.5)") + VAL.format(KEPT),
    'a flip that never comes': TRAIN.format("dict(type='RandomFlip', prob=0.0), load[1], scale"),
    'a metric that reads the json': VAL.format('load[1], scale'),
    'boxes as they were': VAL.format('scale, load[1]') + VOC,
    'both proportions in the train': TRAIN.format(
        f"load[1], dict(type='RandomChoice', transforms=[[scale], [{KEPT}]])") + VAL.format(KEPT),
}


@pytest.mark.parametrize('case', RED)
def test_told_in_red(printed, case):
    lines, said = RED[case]
    assert f'WARNING: {said}' in printed(DETECTOR, lines)


@pytest.mark.parametrize('case', CALM)
def test_nothing_is_told(printed, case):
    assert 'WARNING: ' not in printed(DETECTOR, CALM[case])


@pytest.fixture
def uneven(tmp_path):
    """Pictures of a validation, each of another height."""
    folder = make_pictures(tmp_path / 'uneven')
    for i, path in enumerate(sorted((folder / 'val').rglob('*.png'))):
        cv2.imwrite(str(path), np.full((32 + 2 * i, 32, 3), 9 * i, np.uint8))
    return f"val_dataloader['dataset'].update(data_root='{folder}')\n"


def test_pictures_of_several_sizes(printed, uneven):
    with pytest.raises(PreflightError, match=r'The pipeline of the validation gives pictures of several sizes, such as '
                                             r'\(3, 32, 32\) .*0.png. and \(3, 34, 32\) .*1.png., which make no batch'):
        printed(CLASSIFIER, uneven)


@pytest.mark.parametrize('cure', [
    "val_dataloader['batch_size'] = 1", "val_dataloader['collate_fn'] = dict(type='pseudo_collate')",
    "val_dataloader['dataset']['pipeline'] = [pipeline[0], dict(type='Resize', scale=32), pipeline[1]]"])
def test_pictures_that_make_a_batch(printed, uneven, cure):
    assert 'accuracy/top1' in printed(CLASSIFIER, uneven + cure)


@pytest.mark.parametrize(('steps', 'alike'), [
    ([dict(type='RandomResizedCrop', scale=32), dict(type='RandomFlip', prob=0.5)], True),
    ([dict(type='Resize', scale=(32, 40)), dict(type='RandomErasing')], True),
    ([dict(type='Resize', scale=(32, 40), keep_ratio=True)], False), ([dict(type='Resize', scale_factor=2.)], False),
    ([dict(type='ResizeEdge', scale=36), dict(type='CenterCrop', crop_size=32)], True),
    ([dict(type='ResizeEdge', scale=30), dict(type='CenterCrop', crop_size=32)], False),
    ([dict(type='CenterCrop', crop_size=32)], False), ([dict(type='RandomCrop', crop_size=32)], False),
    ([dict(type='RandomCrop', crop_size=32, pad_if_needed=True)], True),
    ([dict(type='Resize', scale=32), dict(type='Pad', size_divisor=32)], False), ([], False)], ids=str)
def test_steps_that_make_pictures_alike(steps, alike):
    """Of others each size on the disk is tried; a crop leaves smaller pictures as they are."""
    steps = [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
    assert _makes_alike([TRANSFORMS.build(step) for step in steps]) is alike


@pytest.mark.parametrize('split', ['train', 'val'])
def test_one_picture_of_another_size_among_many(printed, tmp_path, split):
    """It would end the run when its batch comes, in a validation behind the first epoch."""
    folder = make_pictures(tmp_path / 'many', count=14)
    odd = folder / split / 'dog/7.png'
    cv2.imwrite(str(odd), np.zeros((32, 40, 3), np.uint8))
    lines = f"{split}_dataloader['dataset'].update(data_root='{folder}')\n"
    if split == 'val':
        lines += f"train_dataloader['dataset'].update(data_root='{folder}')\n"
    with pytest.raises(PreflightError, match=f"and .3, 32, 40. .{odd}., which make no batch: end it by a step to one"):
        printed(CLASSIFIER, lines)
    if split == 'train':
        lines += ("train_dataloader['dataset']['pipeline'] = [pipeline[0], dict(type='RandomResizedCrop', scale=32), "
                  "pipeline[1]]\n")
        assert 'accuracy/top1' in printed(CLASSIFIER, lines)
