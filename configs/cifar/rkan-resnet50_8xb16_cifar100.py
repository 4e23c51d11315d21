"""ResNet-50 for 32 px with an RKAN block on layer4, in mmpretrain's own CIFAR-100 recipe."""
_base_ = './plain-resnet50_8xb16_cifar100.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
