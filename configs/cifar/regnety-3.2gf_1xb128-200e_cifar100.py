"""RegNetY-3.2GF in RKAN's CIFAR-100 recipe."""
_base_ = ['../_base_/models/regnety-3.2gf.py', '../_base_/rkan_cifar100.py']
model = dict(head=dict(num_classes=100))
