"""ResNet-34 in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/resnet34.py', '../_base_/rkan_in1k.py']
