"""ResNet-34 with an RKAN block on layer4, in RKAN's ImageNet recipe."""
_base_ = './resnet34_1xb128-100e_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
