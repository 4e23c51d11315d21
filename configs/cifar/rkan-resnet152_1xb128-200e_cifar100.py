"""ResNet-152 with an RKAN block on layer4, in RKAN's CIFAR-100 recipe."""
_base_ = './resnet152_1xb128-200e_cifar100.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
