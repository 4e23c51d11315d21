"""UPerNet with RKANet-50 in mmsegmentation's own recipe."""
_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
