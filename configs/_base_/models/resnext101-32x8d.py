"""ResNeXt-101 32x8d."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNeXt', depth=101, groups=32, width_per_group=8))
