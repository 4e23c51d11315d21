"""Mask R-CNN, ResNet-50, FPN in mmdet's own 1x recipe: 800 px, 8 GPUs with 2 images each, lr 0.02, frozen BN."""
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/datasets/hint_coco.py']
