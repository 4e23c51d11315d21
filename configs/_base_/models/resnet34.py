"""ResNet-34."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNet', depth=34), head=dict(in_channels=512))
