"""COCO 2017 instances at 640 px as RKAN trains on them (arXiv 2410.05500): shorter side 640, longer at most 1066.

The reference scales at random before it resizes to 640, which undoes the scaling; here it comes after.
"""
_base_ = ['mmdet::_base_/datasets/coco_instance.py', './hint_coco.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        prob=[0.7, 0.3],
        transforms=[
            [dict(type='Resize', scale=(1066, 640), keep_ratio=True)],
            [dict(type='RandomResize', scale=(1066, 640), ratio_range=(0.9, 1.1), keep_ratio=True)],
        ]),
    dict(
        type='RandomApply',
        prob=0.3,
        transforms=[
            # hue by 0.1 of a turn, in half of these images: ColorJitter's own fails in mmcv 2.1.0 with numpy >= 2
            dict(type='YOLOXHSVRandomAug', hue_delta=18, saturation_delta=0, value_delta=0),
            dict(type='mmpretrain.ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2),
        ]),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1066, 640), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=8, num_workers=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
