"""Mask R-CNN with RKANet-50-2xL in RKAN's COCO recipe: the block on layer4 is twice as wide as its input."""
_base_ = '../mask-rcnn_rkanet50_fpn_1x_coco.py'
model = dict(backbone=dict(block=dict(type='RKANBlock', expansion=2)))
