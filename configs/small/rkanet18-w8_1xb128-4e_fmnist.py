"""A RKANet-18 with the stem for small images and an eighth of the width on Fashion-MNIST."""
_base_ = './resnet18-w8_1xb128-4e_fmnist.py'
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
