"""ResNet-101 in RKAN's CIFAR-10 recipe."""
_base_ = ['../_base_/models/resnet101.py', '../_base_/rkan_cifar10.py']
model = dict(head=dict(num_classes=10))
