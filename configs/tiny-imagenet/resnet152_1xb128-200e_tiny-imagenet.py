"""ResNet-152 in RKAN's Tiny ImageNet recipe."""
_base_ = ['../_base_/models/resnet152.py', '../_base_/rkan_tiny-imagenet.py']
model = dict(head=dict(num_classes=200))
