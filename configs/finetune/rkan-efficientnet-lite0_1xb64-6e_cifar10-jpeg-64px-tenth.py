"""The same with an RKAN block, as published, on the last stage of EfficientNet-Lite0."""
_base_ = './efficientnet-lite0_1xb64-6e_cifar10-jpeg-64px-tenth.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}},
        stages=('timm_model.blocks.5:timm_model.blocks.6',)))
