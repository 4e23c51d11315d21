"""RegNetY-32GF."""
_base_ = './classifier.py'
model = dict(backbone=dict(type='rkan_mm.RegNetY', arch='32gf'), head=dict(in_channels=3712))
