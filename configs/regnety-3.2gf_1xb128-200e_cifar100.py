"""RegNetY-3.2GF in RKAN's CIFAR-100 recipe."""
_base_ = './_base_/rkan_cifar100.py'
model = dict(backbone=dict(type='rkan_mm.RegNetY', arch='3.2gf'), head=dict(in_channels=1512))
