"""The same with squeeze-and-excitation at the end of every block."""
_base_ = './resnet18-w16_1xb128-20e_cifar10-jpeg.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.PluggedBackbone',
        backbone={{_base_.model.backbone}},
        plugins=[dict(cfg=dict(type='rkan_mm.SE'))]))
