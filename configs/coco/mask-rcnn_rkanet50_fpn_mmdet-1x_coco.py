"""Mask R-CNN with RKANet-50 in mmdet's own 1x recipe: ResNet-50 as there, and an RKAN block on layer4."""
_base_ = './mask-rcnn_r50_fpn_mmdet-1x_coco.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
