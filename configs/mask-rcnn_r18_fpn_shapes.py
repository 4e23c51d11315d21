"""The plain net beside the demo."""
_base_ = [
    './_base_/models/mask-rcnn_r18-narrow_fpn.py',
    './_base_/datasets/shapes_128.py',
    './_base_/schedules/adamw-8e.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)))
default_hooks = dict(checkpoint=dict(interval=4, max_keep_ckpts=1), logger=dict(interval=25))
randomness = dict(seed=0)
