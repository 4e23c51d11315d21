"""A few photographs of COCO from ImageNet weights, on a CPU: for data/coco-mini, 80 to learn and 78 to test on."""
_base_ = [
    '../_base_/models/faster-rcnn_efficientnet-lite0_fpn.py',
    '../_base_/datasets/coco-instance_320.py',
    '../_base_/schedules/adamw-6e_finetune.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
train_cfg = dict(max_epochs=40, val_interval=40)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=40, T_max=40, eta_min=1e-6, convert_to_iter_based=True)]
val_evaluator = dict(metric=['bbox', 'proposal'])
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1))
custom_hooks = [dict(type='rkan_mm.ChannelsLastHook')]
