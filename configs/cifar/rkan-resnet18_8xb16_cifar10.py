"""ResNet-18 for 32 px with an RKAN block on layer4, in mmpretrain's own CIFAR-10 recipe."""
_base_ = './plain-resnet18_8xb16_cifar10.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
