"""Does it learn on photographs? A narrow RKANet-18 Mask R-CNN learns 8 COCO images by heart and is tested on them.

First: python tools/subset_coco.py ANN/instances_train2017.json ANN/overfit.json --num-images 8 --max-instances 10
"""
_base_ = [
    '../_base_/models/mask-rcnn_r18-narrow_fpn.py', '../_base_/datasets/coco-instance_320.py',
    '../_base_/schedules/adamw-8e.py', 'mmdet::_base_/default_runtime.py'
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
train_dataloader = dict(dataset=dict(ann_file='annotations/overfit.json'))
val_dataloader = dict(dataset=dict(ann_file='annotations/overfit.json', data_prefix=dict(img='train2017/')))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/annotations/overfit.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=120, val_interval=40)
default_hooks = dict(checkpoint=dict(interval=120))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=120, milestones=[80, 110], gamma=0.2)]
