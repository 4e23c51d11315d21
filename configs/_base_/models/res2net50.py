"""Res2Net-50 26w4s with the stem and the shortcuts of a plain ResNet."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='Res2Net', depth=50, deep_stem=False, avg_down=False))
