"""Mask R-CNN with RKANeXt-50 in mmdet's own 1x recipe: ResNeXt-50 32x4d and an RKAN block on layer4."""
_base_ = './mask-rcnn_x50-32x4d_fpn_mmdet-1x_coco.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
