"""Mask R-CNN with RKANet-50: ResNet-50 and an RKAN block on layer4.

Anchors and normalisation are mmdet's; the reference differs in both, see mask-rcnn_rkanet50_fpn_residualkan-1x_coco.py.
"""
_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
