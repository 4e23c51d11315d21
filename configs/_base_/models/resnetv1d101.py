"""ResNet-101-D."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNetV1d', depth=101))
