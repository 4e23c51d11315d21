"""ResNet-152 in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/resnet152.py', '../_base_/rkan_in1k.py']
