"""ImageNet-1k at 224 px as RKAN trains on it (arXiv 2410.05500): crop, flip, RandAugment(2, 9) as in torchvision."""
data_root = 'data/imagenet/'
data_hint = ('Get ILSVRC 2012 from https://image-net.org/download.php as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, '
             'or name yours: --cfg-options data_root=path/to/imagenet/')
data_preprocessor = dict(
    num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
policies = [
    dict(type='AutoContrast', prob=0.0),  # the identity
    dict(type='AutoContrast', prob=1.0),
    dict(type='Equalize', prob=1.0),
    dict(type='Rotate', magnitude_range=(0, 30), prob=1.0),
    dict(type='Posterize', magnitude_range=(8, 4), prob=1.0),
    dict(type='Solarize', magnitude_range=(255, 0), prob=1.0),
    dict(type='ColorTransform', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Contrast', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Brightness', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Sharpness', magnitude_range=(0, 0.9), prob=1.0),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal', prob=1.0),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical', prob=1.0),
    dict(type='Translate', magnitude_range=(0, 150 / 331), direction='horizontal', prob=1.0),
    dict(type='Translate', magnitude_range=(0, 150 / 331), direction='vertical', prob=1.0),
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies=policies,
        num_policies=2,
        magnitude_level=9,
        total_level=30,
        hparams=dict(pad_val=0, interpolation='nearest')),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='ImageNet', data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    dataset=dict(type='ImageNet', data_root=data_root, split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
