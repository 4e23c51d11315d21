"""ResNet-50 in RKAN's Food-101 recipe."""
_base_ = ['../_base_/models/resnet50.py', '../_base_/rkan_food101.py']
model = dict(head=dict(num_classes=101))
