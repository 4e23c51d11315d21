"""Conv & KAN (Medium) of Convolutional KANs, grid size 10."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 10)),
    head=dict(type='KANLinearClsHead', in_channels=250, fc_cfg={{_base_.kan_linear}}))
train_cfg = dict(max_epochs=13)
