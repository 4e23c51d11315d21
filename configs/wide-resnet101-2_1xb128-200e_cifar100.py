"""Wide ResNet-101-2 in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(backbone=dict(type='ResNet', depth=101, base_channels=128, expansion=2))
