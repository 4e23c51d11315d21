"""The plain net of the demo with global context in every block."""
_base_ = '../mask-rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.PluggedBackbone',
        backbone={{_base_.model.backbone}},
        plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16))]))
