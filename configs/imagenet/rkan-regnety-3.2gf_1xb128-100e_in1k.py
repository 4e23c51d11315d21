"""RegNetY-3.2GF with an RKAN block on layer4, in RKAN's ImageNet recipe."""
_base_ = './regnety-3.2gf_1xb128-100e_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}}))
