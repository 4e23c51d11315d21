"""Mask R-CNN, ResNeXt-50 32x4d, FPN in RKAN's COCO recipe. The baseline of mask-rcnn_rkanext50."""
_base_ = '../mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        type='ResNeXt',
        groups=32,
        base_width=4,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnext50_32x4d')))
