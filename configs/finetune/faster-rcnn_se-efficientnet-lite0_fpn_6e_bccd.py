"""The same with squeeze-and-excitation at the end of every block of EfficientNet-Lite0."""
_base_ = './faster-rcnn_efficientnet-lite0_fpn_6e_bccd.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.PluggedBackbone',
        backbone={{_base_.model.backbone}},
        plugins=[dict(cfg=dict(type='rkan_mm.SE', postfix='_out'))]))
