"""ResNeXt-101 32x8d in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, width_per_group=8))
