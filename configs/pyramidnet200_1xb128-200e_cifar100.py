"""PyramidNet-200 (alpha 240) in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(backbone=dict(type='rkan_mm.PyramidNet', depth=200), head=dict(in_channels=1216))
