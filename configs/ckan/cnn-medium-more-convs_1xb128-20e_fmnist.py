"""CNN (Medium, more convs), a baseline of Convolutional KANs."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(10, 20)),
    head=dict(in_channels=500))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
