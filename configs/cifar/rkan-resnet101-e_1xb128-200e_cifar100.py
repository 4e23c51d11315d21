"""RKANet-E: ResNet-101 with RKAN blocks on layer3 and layer4, in RKAN's CIFAR-100 recipe."""
_base_ = './rkan-resnet101_1xb128-200e_cifar100.py'
model = dict(backbone=dict(stages=('layer3', 'layer4')))
