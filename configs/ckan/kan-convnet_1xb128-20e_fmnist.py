"""The net with KAN convolutions."""
_base_ = './convnet_1xb128-20e_fmnist.py'
model = dict(
    backbone=dict(
        channels=(6, 10, 12), act_cfg=None,
        conv_cfg=dict(type='KANConv2d', bias=False, basis=dict(type='Chebyshev'))),
    head=dict(in_channels=108))
