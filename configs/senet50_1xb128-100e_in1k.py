"""SENet-50 on ImageNet-1k in RKAN's recipe. As RKAN's, its SE has no biases."""
_base_ = './resnet50_1xb128-100e_in1k.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='rkan_mm.PluggedBackbone',
        backbone={{_base_.model.backbone}},
        plugins=[dict(cfg=dict(type='rkan_mm.SE'))]))
