"""Small configs, a detector's and a classifier's, and data for them, for runs in tests."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope


def make_pictures(folder: Path, count: int = 2) -> Path:
    """Folders of three classes, ``count`` pictures each, for training and validation."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('cat', 'dog', 'owl'):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(folder / split / name / f'{i}.png'), rng.integers(0, 255, (32, 32, 3), np.uint8))
    return folder


def write_run(folder: Path, name: str, text: str) -> list[str]:
    """A config and an untrained checkpoint of its model: what `rkan-mm test` takes."""
    path = folder / f'{name}.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / f'{name}.pth')
    return [str(path), str(folder / f'{name}.pth')]


DETECTOR = """
default_scope = 'mmdet'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
data_root = 'shapes'
model = dict(
    type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(
        type='ResNet', depth=18, base_channels=4, stem_channels=4, norm_eval=False)),
    neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=5, in_channels=8, feat_channels=8, stacked_convs=1),
    test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                                 ignore_iof_thr=-1), sampler=dict(type='PseudoSampler'), allowed_border=-1,
                   pos_weight=-1, debug=False))
classes = ('disc', 'rectangle', 'triangle', 'star', 'ring')
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
scale = dict(type='Resize', scale=(64, 64))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file='annotations/train.json', metainfo=dict(
        classes=classes), data_prefix=dict(img='train'), pipeline=[*load, scale, dict(type='RandomFlip', prob=0.5),
                                                                   dict(type='PackDetInputs')]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file='annotations/val.json', metainfo=dict(
        classes=classes), data_prefix=dict(img='val'), test_mode=True, pipeline=[
            load[0], scale, dict(type='PackDetInputs', meta_keys=keys)]))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + '/annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
randomness = dict(seed=0)
visualizer = dict(type='DetLocalVisualizer')
custom_hooks = [dict(type='IterTimerHook')]
"""
"""RetinaNet with a tiny RKANet on the drawn shapes."""

CLASSIFIER = """
default_scope = 'mmpretrain'
data_root = 'pictures'
model = dict(
    type='ImageClassifier', backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4),
    neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=32, topk=(1,)))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='val', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
"""
"""A tiny ResNet on folders of three classes."""
