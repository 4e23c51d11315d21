"""A ResNet-18 with the stem for small images and an eighth of the width on Fashion-MNIST."""
_base_ = [
    '../_base_/datasets/fmnist_28.py',
    '../_base_/schedules/adamw-cls.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=1))
train_cfg = dict(max_epochs=4)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=4, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True)]
auto_scale_lr = dict(base_batch_size=128)
randomness = dict(seed=0)
