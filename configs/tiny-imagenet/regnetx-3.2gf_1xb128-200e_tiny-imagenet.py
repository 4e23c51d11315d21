"""RegNetX-3.2GF in RKAN's Tiny ImageNet recipe."""
_base_ = ['../_base_/models/regnetx-3.2gf.py', '../_base_/rkan_tiny-imagenet.py']
model = dict(head=dict(num_classes=200))
