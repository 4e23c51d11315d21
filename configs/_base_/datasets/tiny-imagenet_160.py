"""Tiny ImageNet at 160 px as RKAN trains on it (arXiv 2410.05500): resize, flip, RandAugment(2, 9), by torchvision."""
data_root = 'data/tiny-imagenet-200/'
data_hint = ('Get it with: wget -P data http://cs231n.stanford.edu/tiny-imagenet-200.zip && '
             'unzip -q data/tiny-imagenet-200.zip -d data')
data_preprocessor = dict(
    num_classes=200, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
resize = dict(type='torchvision/Resize', size=(160, 160), interpolation='bicubic')
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='NumpyToPIL', to_rgb=True),
    resize,
    dict(type='torchvision/RandomHorizontalFlip'),
    dict(type='torchvision/RandAugment', num_ops=2, magnitude=9),
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='NumpyToPIL', to_rgb=True),
    resize,
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='rkan_mm.TinyImageNet', data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='rkan_mm.TinyImageNet', data_root=data_root, split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
