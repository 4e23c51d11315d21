"""Faster R-CNN with RKANet-50 on VOC 07+12 in RKAN's recipe."""
_base_ = './faster-rcnn_r50_fpn_1x_voc0712.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))
