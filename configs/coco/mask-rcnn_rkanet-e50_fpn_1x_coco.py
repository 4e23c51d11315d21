"""Mask R-CNN with RKANet-E-50 in RKAN's COCO recipe: RKAN blocks on layer3 and layer4."""
_base_ = '../mask-rcnn_rkanet50_fpn_1x_coco.py'
model = dict(backbone=dict(stages=dict(layer3=dict(), layer4=dict())))
