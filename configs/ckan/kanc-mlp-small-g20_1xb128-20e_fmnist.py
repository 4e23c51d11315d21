"""KANC MLP (Small) of Convolutional KANs, grid size 20."""
_base_ = './kanc-mlp-small-g10_1xb128-19e_fmnist.py'
model = dict(backbone=dict(conv_cfg=dict(basis=dict(grid_size=20))))
train_cfg = dict(max_epochs=20)
