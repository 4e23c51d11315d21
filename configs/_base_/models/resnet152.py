"""ResNet-152."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNet', depth=152))
