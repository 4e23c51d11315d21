"""KANC MLP (Big) of Convolutional KANs, grid size 20."""
_base_ = './kanc-mlp-big-g10_1xb128-20e_fmnist.py'
model = dict(backbone=dict(conv_cfg=dict(basis=dict(grid_size=20))))
train_cfg = dict(max_epochs=12)
