"""ResNet-50 with an RKAN block on layer4, in RKAN's SVHN recipe."""
_base_ = './resnet50_1xb128-200e_svhn.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
