"""RKANet-6xL: ResNet-101 with an RKAN block 6 times as wide as its input, in RKAN's CIFAR-100 recipe."""
_base_ = './rkan-resnet101_1xb128-200e_cifar100.py'
model = dict(backbone=dict(block=dict(type='RKANBlock', expansion=6)))
