"""SANet-50 in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='ResNet', depth=50),
        plugins=[dict(cfg=dict(type='rkan_mm.ShuffleAttention'))]))
