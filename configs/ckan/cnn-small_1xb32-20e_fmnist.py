"""CNN (Small), a baseline of Convolutional KANs."""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(5, 5)),
    head=dict(in_channels=125))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
