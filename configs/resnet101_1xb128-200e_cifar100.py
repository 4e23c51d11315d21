"""ResNet-101 in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(backbone=dict(type='ResNet', depth=101))
