"""Mask R-CNN with SENet-50 in mmdet's own 1x recipe: ResNet-50 and squeeze-and-excitation in every block.

layer1 is trained too: its SE layers are new.
"""
_base_ = './mask-rcnn_r50_fpn_mmdet-1x_coco.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(frozen_stages=0, plugins=[dict(cfg=dict(type='rkan_mm.SE'), position='after_conv3')]))
