"""Mask R-CNN with RKANet-101 in RKAN's COCO recipe."""
_base_ = './mask-rcnn_r101_fpn_1x_coco.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
