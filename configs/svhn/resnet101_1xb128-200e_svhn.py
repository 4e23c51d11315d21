"""ResNet-101 in RKAN's SVHN recipe."""
_base_ = ['../_base_/models/resnet101.py', '../_base_/rkan_svhn.py']
model = dict(head=dict(num_classes=10))
