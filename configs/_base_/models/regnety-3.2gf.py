"""RegNetY-3.2GF."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='rkan_mm.RegNetY', arch='3.2gf'), head=dict(in_channels=1512))
