"""ResNet-101."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNet', depth=101))
