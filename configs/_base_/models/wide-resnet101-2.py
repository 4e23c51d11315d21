"""Wide ResNet-101-2."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='ResNet', depth=101, base_channels=128, expansion=2))
