"""KKAN (Medium) of Convolutional KANs, grid size 20."""
_base_ = './kkan-medium-g10_1xb32-5e_fmnist.py'
model = dict(
    backbone=dict(conv_cfg=dict(basis=dict(grid_size=20))),
    head=dict(fc_cfg=dict(basis=dict(grid_size=20))))
train_dataloader = dict(batch_size=128)
auto_scale_lr = dict(base_batch_size=128)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
train_cfg = dict(max_epochs=10)
