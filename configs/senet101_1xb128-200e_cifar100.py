"""SENet-101 in RKAN's CIFAR-100 recipe. As RKAN's, its SE has no biases."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='ResNet', depth=101),
        plugins=[dict(cfg=dict(type='rkan_mm.SE'))]))
