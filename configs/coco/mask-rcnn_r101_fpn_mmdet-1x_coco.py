"""Mask R-CNN, ResNet-101, FPN in mmdet's own 1x recipe. The baseline of mask-rcnn_rkanet101."""
_base_ = './mask-rcnn_r50_fpn_mmdet-1x_coco.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101')))
