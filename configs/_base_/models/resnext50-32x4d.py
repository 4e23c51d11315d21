"""ResNeXt-50 32x4d."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNeXt', depth=50, groups=32, width_per_group=4))
