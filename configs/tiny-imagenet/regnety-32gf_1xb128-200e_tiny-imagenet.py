"""RegNetY-32GF in RKAN's Tiny ImageNet recipe."""
_base_ = ['../_base_/models/regnety-32gf.py', '../_base_/rkan_tiny-imagenet.py']
model = dict(head=dict(num_classes=200))
