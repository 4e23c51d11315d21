"""The same with RKAN blocks, as published, on the four outputs of the FPN."""
_base_ = './faster-rcnn_efficientnet-lite0_fpn_6e_bccd.py'
model = dict(
    neck=dict(
        _delete_=True,
        type='rkan_mm.RKANet',
        backbone={{_base_.model.neck}},
        stages=('fpn_convs.0', 'fpn_convs.1', 'fpn_convs.2', 'fpn_convs.3')))
