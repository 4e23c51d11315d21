"""PyramidNet-200 (alpha 240)."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='rkan_mm.PyramidNet', depth=200), head=dict(in_channels=1216))
