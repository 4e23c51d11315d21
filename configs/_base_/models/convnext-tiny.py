"""ConvNeXt-T with torchvision's rates of stochastic depth."""
_base_ = './classifier.py'
model = dict(
    backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.1),
    neck=None,  # it pools before its last norm
    head=dict(in_channels=768),
    init_cfg=dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0))
