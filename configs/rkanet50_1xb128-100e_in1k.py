"""RKANet-50 on ImageNet-1k: ResNet-50 and an RKAN block on layer4. RKAN used --amp."""
_base_ = './resnet50_1xb128-100e_in1k.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
