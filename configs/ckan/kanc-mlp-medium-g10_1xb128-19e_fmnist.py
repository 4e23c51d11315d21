"""KANC MLP (Medium) of Convolutional KANs, grid size 10."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 10), conv_cfg={{_base_.kan_conv}}, act_cfg=None),
    head=dict(in_channels=250))
train_cfg = dict(max_epochs=19)
