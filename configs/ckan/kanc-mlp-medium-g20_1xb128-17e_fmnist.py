"""KANC MLP (Medium) of Convolutional KANs, grid size 20."""
_base_ = './kanc-mlp-medium-g10_1xb128-19e_fmnist.py'
model = dict(backbone=dict(conv_cfg=dict(basis=dict(grid_size=20))))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
train_cfg = dict(max_epochs=17)
