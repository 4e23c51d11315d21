"""CNN (Big), a baseline of Convolutional KANs."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 10)),
    head=dict(type='StackedLinearClsHead', in_channels=250, mid_channels=[100]))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
