"""ResNeXt-50 32x4d in RKAN's Tiny ImageNet recipe."""
_base_ = ['../_base_/models/resnext50-32x4d.py', '../_base_/rkan_tiny-imagenet.py']
model = dict(head=dict(num_classes=200))
