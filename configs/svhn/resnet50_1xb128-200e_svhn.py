"""ResNet-50 in RKAN's SVHN recipe."""
_base_ = ['../_base_/models/resnet50.py', '../_base_/rkan_svhn.py']
model = dict(head=dict(num_classes=10))
