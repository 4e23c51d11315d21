"""Mask R-CNN, ResNet-50, FPN in RKAN's COCO recipe; every layer is trained, BN too. The baseline of mask-rcnn_rkanet50.

Anchors and normalisation are mmdet's; the reference differs in both, see mask-rcnn_rkanet50_fpn_residualkan-1x_coco.py.
"""
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    './_base_/datasets/coco-instance_640.py',
    './_base_/schedules/rkan-1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False))
