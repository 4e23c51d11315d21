"""SENet-50 in RKAN's ImageNet recipe."""
_base_ = ['../_base_/models/senet50.py', '../_base_/rkan_in1k.py']
