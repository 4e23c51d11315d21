"""ResNeXt-101 32x8d in RKAN's CIFAR-100 recipe."""
_base_ = ['../_base_/models/resnext101-32x8d.py', '../_base_/rkan_cifar100.py']
model = dict(head=dict(num_classes=100))
