"""Mask R-CNN with RKAN-SENet-50 in mmdet's own 1x recipe: SENet-50 and an RKAN block on layer4."""
_base_ = './mask-rcnn_senet50_fpn_mmdet-1x_coco.py'
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
