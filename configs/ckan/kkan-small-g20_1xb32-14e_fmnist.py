"""KKAN (Small) of Convolutional KANs, grid size 20."""
_base_ = './kkan-small-g10_1xb128-12e_fmnist.py'
model = dict(
    backbone=dict(conv_cfg=dict(basis=dict(grid_size=20))),
    head=dict(fc_cfg=dict(basis=dict(grid_size=20))))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
train_cfg = dict(max_epochs=14)
