"""SENet-50. As RKAN's, its SE has no biases."""
_base_ = './classifier.py'
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='ResNet', depth=50),
        plugins=[dict(cfg=dict(type='rkan_mm.SE'))]))
