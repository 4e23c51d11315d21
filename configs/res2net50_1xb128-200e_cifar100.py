"""Res2Net-50 26w4s in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(backbone=dict(type='Res2Net', depth=50, deep_stem=False, avg_down=False))
