"""DenseNet-121 in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/densenet121.py', '../_base_/rkan_in1k.py']
