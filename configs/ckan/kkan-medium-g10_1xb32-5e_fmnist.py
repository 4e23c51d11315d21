"""KKAN (Medium) of Convolutional KANs, grid size 10."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 10), conv_cfg={{_base_.kan_conv}}, act_cfg=None),
    head=dict(type='KANLinearClsHead', in_channels=250, fc_cfg={{_base_.kan_linear}}))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
train_cfg = dict(max_epochs=5)
