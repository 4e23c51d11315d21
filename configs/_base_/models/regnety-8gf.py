"""RegNetY-8GF."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='rkan_mm.RegNetY', arch='8.0gf'), head=dict(in_channels=2016))
