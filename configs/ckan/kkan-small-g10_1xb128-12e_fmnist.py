"""KKAN (Small) of Convolutional KANs, grid size 10."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 5), conv_cfg={{_base_.kan_conv}}, act_cfg=None),
    head=dict(type='KANLinearClsHead', in_channels=125, fc_cfg={{_base_.kan_linear}}))
train_cfg = dict(max_epochs=12)
