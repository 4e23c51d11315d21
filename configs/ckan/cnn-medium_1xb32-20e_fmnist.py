"""CNN (Medium), a baseline of Convolutional KANs."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 10)),
    head=dict(in_channels=250))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
