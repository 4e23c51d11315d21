"""For photographs on a CPU: Mask R-CNN on the RKANet-18 of rkanet18-w16_1xb64-40e_tiny-imagenet-20, random weights."""
_base_ = [
    '../_base_/models/mask-rcnn_r18-narrow_fpn.py', '../_base_/datasets/coco-instance_320.py',
    '../_base_/schedules/adamw-8e.py', 'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
resnet = dict(type='ResNet', depth=18, base_channels=16, stem_channels=16, norm_eval=False)
model = dict(
    backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone=resnet), neck=dict(in_channels=[16, 32, 64, 128]))
train_cfg = dict(max_epochs=40, val_interval=40)
val_evaluator = dict(metric=['bbox', 'segm', 'proposal'])
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(interval=20, max_keep_ckpts=1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=40, milestones=[27, 37], gamma=0.2)]
