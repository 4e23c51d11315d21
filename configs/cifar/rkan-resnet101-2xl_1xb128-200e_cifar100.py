"""RKANet-2xL: ResNet-101 with an RKAN block 2 times as wide as its input, in RKAN's CIFAR-100 recipe."""
_base_ = './rkan-resnet101_1xb128-200e_cifar100.py'
model = dict(backbone=dict(block=dict(type='RKANBlock', expansion=2)))
