"""Mask R-CNN with SENet-50 in RKAN's COCO recipe: ResNet-50 and squeeze-and-excitation in every block."""
_base_ = '../mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(plugins=[dict(cfg=dict(type='rkan_mm.SE'), position='after_conv3')]))
