"""Mask R-CNN with GCNet-50 in mmdet's own 1x recipe: mmcv's ContextBlock r16, c3-c5."""
_base_ = './mask-rcnn_r50_fpn_mmdet-1x_coco.py'
model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='ContextBlock', ratio=1 / 16), stages=(False, True, True, True), position='after_conv3')
    ]))
