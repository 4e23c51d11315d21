"""The same with an RKAN block, as published, on the last stage."""
_base_ = './resnet18-w16_1xb128-20e_cifar10-jpeg.py'
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
