"""The plain net of the demo with squeeze-and-excitation in every block."""
_base_ = '../mask-rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.PluggedBackbone',
        backbone={{_base_.model.backbone}},
        plugins=[dict(cfg=dict(type='rkan_mm.SE'))]))
