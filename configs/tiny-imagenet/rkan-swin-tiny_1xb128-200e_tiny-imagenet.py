"""Swin-T with an RKAN block on stage 2, in front of its patch merging, in RKAN's Tiny ImageNet recipe."""
_base_ = './swin-tiny_1xb128-200e_tiny-imagenet.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}},
        stages=('stages.1.blocks.0:stages.1.blocks.1',),
        block=dict(type='RKANBlock', reduction=8, last=True)))
