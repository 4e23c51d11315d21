"""A RKANet-18 of a quarter of the width on twenty classes of Tiny ImageNet."""
_base_ = './resnet18-w16_1xb64-40e_tiny-imagenet-20.py'
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
