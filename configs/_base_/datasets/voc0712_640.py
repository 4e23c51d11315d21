"""VOC 07+12 trainval and 07 test at 640 px, with the augmentation of coco-instance_640.py, as RKAN trains on them.

AP at IoU 0.5 both ways: ``voc07`` on 11 points, ``voc12`` by the area, which is near to what RKAN measured.
"""
_base_ = 'mmdet::_base_/datasets/voc0712.py'
data_hint = ('Get VOC 2007 (trainval, test) and VOC 2012 (trainval) from http://host.robots.ox.ac.uk/pascal/VOC/ into '
             'data/VOCdevkit/VOC2007 and VOC2012, or name yours: --cfg-options data_root=path/to/VOCdevkit/')

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
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
            dict(type='YOLOXHSVRandomAug', hue_delta=18, saturation_delta=0, value_delta=0),
            dict(type='mmpretrain.ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2),
        ]),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1066, 640), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data_root = 'data/VOCdevkit/'
trainval = [
    dict(
        type='VOCDataset',
        data_root=data_root,
        ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=3),
        pipeline=train_pipeline) for year in (2007, 2012)
]
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(_delete_=True, type='ConcatDataset', ignore_keys=['dataset_type'], datasets=trainval))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='VOCMetric', metric='mAP', eval_mode='11points', prefix='voc07'),
    dict(type='VOCMetric', metric='mAP', eval_mode='area', prefix='voc12'),
]
test_evaluator = val_evaluator
