"""RTMDet-s with an RKAN block on the last stage of its CSPNeXt, in mmdet's own recipe."""
_base_ = ['mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', '../_base_/datasets/hint_coco.py']
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True, type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}, stages=dict(stage4=dict())))
auto_scale_lr = dict(base_batch_size=256)  # mmdet's own says 16
