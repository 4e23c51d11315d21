"""Wide ResNet-101-2 with an RKAN block on layer4, in RKAN's CIFAR-100 recipe."""
_base_ = './wide-resnet101-2_1xb128-200e_cifar100.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
