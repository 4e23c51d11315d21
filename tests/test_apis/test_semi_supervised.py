"""SoftTeacher of mmdet with a RKANet, by mmdet's own config, trained to its end and tested."""

import json
import math

import pytest
import torch

from rkan_mm.apis import runner
from rkan_mm.preflight import PreflightError

BASE = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
CONFIG = """
_base_ = '{base}'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
classes = ('disc', 'rectangle', 'triangle', 'star', 'ring')
detector = dict(
    backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone=dict(
        type='ResNet', depth=18, base_channels=4, stem_channels=4, frozen_stages=1)),
    neck=dict(in_channels=[4, 8, 16, 32], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=8),
                  bbox_head=dict(in_channels=8, fc_out_channels=16, num_classes=5)))
model = dict(detector=detector, semi_train_cfg=dict(
    pseudo_label_initial_score_thr=0.0, rpn_pseudo_thr=0.0, cls_pseudo_thr=0.0, reg_pseudo_thr=9.0))
labelled, unlabelled = _base_.train_dataloader.dataset.datasets
labelled.update(data_root='{data}', ann_file='annotations/train.json', data_prefix=dict(img='train'),
                metainfo=dict(classes=classes))
unlabelled.update(data_root='{data}', ann_file='annotations/unlabelled.json', data_prefix=dict(img='val'),
                  metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    sampler=dict(type='GroupMultiSourceSampler', batch_size=4, source_ratio=[2, 2]),
    dataset=dict(datasets=[labelled, unlabelled]))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    data_root='{data}', ann_file='annotations/val.json', data_prefix=dict(img='val'), metainfo=dict(classes=classes)))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3))
env_cfg = dict(mp_cfg=dict(mp_start_method='fork'))
"""


@pytest.fixture
def config(small_data, tmp_path):
    shapes = small_data / 'shapes'
    content = json.loads((shapes / 'annotations/val.json').read_text())
    content.pop('annotations')
    (shapes / 'annotations/unlabelled.json').write_text(json.dumps(content))
    path = tmp_path / 'semi.py'
    path.write_text(CONFIG.replace('{base}', BASE).replace('{data}', str(shapes)))
    return path


@pytest.mark.slow
def test_a_teacher_and_a_student_are_trained_and_tested(config, tmp_path):
    done = runner.train([str(config), '--work-dir', str(tmp_path / 'work')])
    assert done.iter == 3
    teacher, student = (dict(getattr(done.model, name).named_parameters()) for name in ('teacher', 'student'))
    name = 'backbone.bridges.layer4.block.kan1.weight'
    assert teacher[name].shape == student[name].shape
    assert not teacher[name].requires_grad
    assert not torch.equal(teacher[name], student[name])  # they began alike, and it follows at a distance
    summary = json.loads((tmp_path / 'work/summary.json').read_text())['metrics']
    assert {'teacher/coco/bbox_mAP', 'student/coco/bbox_mAP'} <= set(summary)
    figures = runner.test([str(config), str(tmp_path / 'work/iter_3.pth'), '--work-dir', str(tmp_path / 'test')])
    assert math.isclose(figures['coco/bbox_mAP'], summary['teacher/coco/bbox_mAP']['last'])  # semi_test_cfg asks it


def test_labels_are_asked_of_the_labelled_data_alone(config, tmp_path):
    with pytest.raises(PreflightError, match='unlabelled.json: none of its 2 images has an annotated object to'):
        runner.train([str(config), '--work-dir', str(tmp_path), '--cfg-options',
                      'train_dataloader.dataset.datasets.0.ann_file=annotations/unlabelled.json'])


def test_the_best_is_of_the_teacher_or_of_the_student(config, tmp_path):
    with pytest.raises(PreflightError, match='waits for coco/bbox_mAP, and the validation gives the figures of two mod'
                                             'els: name teacher/coco/bbox_mAP, or student/coco/bbox_mAP'):
        runner.train([str(config), '--work-dir', str(tmp_path), '--cfg-options',
                      'default_hooks.checkpoint.save_best=coco/bbox_mAP'])


def test_a_head_of_other_classes_is_named_as_the_config_has_it(config, tmp_path):
    with pytest.raises(PreflightError, match='Set model.detector.roi_head.bbox_head.num_classes=5. To run all the'):
        runner.train([str(config), '--work-dir', str(tmp_path), '--cfg-options',
                      'model.detector.roi_head.bbox_head.num_classes=80'])
