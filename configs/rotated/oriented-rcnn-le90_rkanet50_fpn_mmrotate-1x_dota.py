"""Oriented R-CNN with RKANet-50 in mmrotate's own recipe."""
_base_ = 'mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
