"""DenseNet-161 with an RKAN block on the last dense block, in RKAN's Tiny ImageNet recipe."""
_base_ = './densenet161_1xb128-200e_tiny-imagenet.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}},
        stages=('stages.3:transitions.3',)))
