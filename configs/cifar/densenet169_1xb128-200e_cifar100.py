"""DenseNet-169 in RKAN's CIFAR-100 recipe."""
_base_ = ['../_base_/models/densenet169.py', '../_base_/rkan_cifar100.py']
model = dict(head=dict(num_classes=100))
