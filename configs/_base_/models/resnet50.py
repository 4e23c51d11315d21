"""ResNet-50."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNet', depth=50))
