"""RegNetY-8GF with an RKAN block on layer4, in RKAN's Tiny ImageNet recipe."""
_base_ = './regnety-8gf_1xb128-200e_tiny-imagenet.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
