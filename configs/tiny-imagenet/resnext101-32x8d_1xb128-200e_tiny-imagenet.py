"""ResNeXt-101 32x8d in RKAN's Tiny ImageNet recipe."""
_base_ = ['../_base_/models/resnext101-32x8d.py', '../_base_/rkan_tiny-imagenet.py']
model = dict(head=dict(num_classes=200))
