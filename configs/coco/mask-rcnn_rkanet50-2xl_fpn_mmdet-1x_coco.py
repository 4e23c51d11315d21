"""Mask R-CNN with RKANet-50-2xL in mmdet's own 1x recipe: the block on layer4 is twice as wide as its input."""
_base_ = './mask-rcnn_rkanet50_fpn_mmdet-1x_coco.py'
model = dict(backbone=dict(block=dict(type='RKANBlock', expansion=2)))
