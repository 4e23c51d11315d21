"""RKAN added to a trained Mask R-CNN: the block's last norm starts at zero, and so the AP at that of mmdet's ResNet-50.

The lr is what that was trained with in its epochs 9 to 11; the schedule is 1x again. Not tried on COCO.
"""
_base_ = './mask-rcnn_rkanet50_fpn_mmdet-1x_coco.py'
model = dict(backbone=dict(backbone=dict(init_cfg=None), block=dict(type='RKANBlock', zero_init_residual=True)))
optim_wrapper = dict(optimizer=dict(lr=0.002))
load_from = ('https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/'
             'mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth')
