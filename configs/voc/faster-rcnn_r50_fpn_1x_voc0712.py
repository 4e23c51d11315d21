"""Faster R-CNN, ResNet-50, FPN on VOC 07+12 in RKAN's recipe; every layer is trained, BN too."""
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/voc0712_640.py',
    '../_base_/schedules/rkan-1x.py',
    '../_base_/tta/det-640_scales-flip.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(backbone=dict(frozen_stages=-1, norm_eval=False), roi_head=dict(bbox_head=dict(num_classes=20)))
