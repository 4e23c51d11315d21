"""CBAM-50."""
_base_ = './classifier.py'
model = dict(
    backbone=dict(
        type='rkan_mm.PluggedBackbone',
        backbone=dict(type='ResNet', depth=50),
        plugins=[dict(cfg=dict(type='rkan_mm.CBAM'))]))
