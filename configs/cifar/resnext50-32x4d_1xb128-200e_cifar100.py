"""ResNeXt-50 32x4d in RKAN's CIFAR-100 recipe."""
_base_ = ['../_base_/models/resnext50-32x4d.py', '../_base_/rkan_cifar100.py']
model = dict(head=dict(num_classes=100))
