"""ResNet-101 in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/resnet101.py', '../_base_/rkan_in1k.py']
