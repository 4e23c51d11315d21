"""KANC MLP (Big) of Convolutional KANs, grid size 10."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 10), conv_cfg={{_base_.kan_conv}}, act_cfg=None),
    head=dict(type='StackedLinearClsHead', in_channels=250, mid_channels=[100], act_cfg=None))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
