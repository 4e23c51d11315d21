"""RKAN-SENet-50 on ImageNet-1k: SENet-50 and an RKAN block on layer4."""
_base_ = './senet50_1xb128-100e_in1k.py'
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
