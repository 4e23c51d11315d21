"""Swin-T with torchvision's rates of stochastic depth; as there, windows are padded on maps smaller than they are."""
_base_ = './classifier.py'
model = dict(
    backbone=dict(type='SwinTransformer', arch='tiny', img_size=160, drop_path_rate=0.2, pad_small_map=True),
    head=dict(in_channels=768),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ])
