"""A ResNet-18 of a quarter of the width on twenty classes of Tiny ImageNet."""
_base_ = [
    '../_base_/datasets/tiny-imagenet-20_64.py',
    '../_base_/schedules/adamw-cls.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=16, base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=20, in_channels=128, loss=dict(type='CrossEntropyLoss')))
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1))
randomness = dict(seed=0)
