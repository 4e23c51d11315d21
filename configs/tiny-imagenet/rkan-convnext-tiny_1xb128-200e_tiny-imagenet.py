"""ConvNeXt-T with an RKAN block (first version) from stage 2 over its down-sampling, in RKAN's Tiny ImageNet recipe."""
_base_ = './convnext-tiny_1xb128-200e_tiny-imagenet.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.backbone}},
        stages=('stages.1:downsample_layers.2',),
        block=dict(type='RKANBlock', reduction=1, act_cfg=None, norm_between=False)))
