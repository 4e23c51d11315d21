"""KANC MLP (Medium) of Convolutional KANs with grids that follow the data in the first two epochs."""
_base_ = './kanc-mlp-medium-g10_1xb128-19e_fmnist.py'
custom_hooks = [dict(type='KANGridUpdateHook', interval=100, begin=0, end=938)]
