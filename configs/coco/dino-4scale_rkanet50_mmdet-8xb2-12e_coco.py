"""DINO, four scales, with RKANet-50 in mmdet's own recipe of 12 epochs.

Its backbone learns at a tenth of the rate; the RKAN block is new and does not.
"""
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', '../_base_/datasets/hint_coco.py']
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone.bridges': dict(lr_mult=1.0)}))
