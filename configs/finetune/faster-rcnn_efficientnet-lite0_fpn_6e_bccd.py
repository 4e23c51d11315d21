"""Your own data from ImageNet weights, on a CPU: Faster R-CNN on 205 pictures of blood cells."""
_base_ = [
    '../_base_/models/faster-rcnn_efficientnet-lite0_fpn.py',
    '../_base_/datasets/bccd_320.py',
    '../_base_/schedules/adamw-6e_finetune.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=25))
custom_hooks = [dict(type='rkan_mm.ChannelsLastHook')]
randomness = dict(seed=0)
