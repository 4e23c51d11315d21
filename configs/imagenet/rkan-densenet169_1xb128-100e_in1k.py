"""DenseNet-169 with an RKAN block on the last dense block, in RKAN's ImageNet recipe."""
_base_ = './densenet169_1xb128-100e_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}},
        stages=('stages.3:transitions.3',)))
