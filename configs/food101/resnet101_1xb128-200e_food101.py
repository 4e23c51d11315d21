"""ResNet-101 in RKAN's Food-101 recipe."""
_base_ = ['../_base_/models/resnet101.py', '../_base_/rkan_food101.py']
model = dict(head=dict(num_classes=101))
