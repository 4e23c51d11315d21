"""ResNet-50 in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/resnet50.py', '../_base_/rkan_in1k.py']
