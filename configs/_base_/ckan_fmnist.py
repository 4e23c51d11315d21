"""Convolutional KANs (arXiv 2406.13155) on Fashion-MNIST: AdamW with a constant lr of 1e-3, cross-entropy, no more.

Every epoch ends with the test set, as the authors report it; nothing is selected by it.
"""
_base_ = ['./datasets/fmnist_28.py', 'mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
kan_conv = dict(
    type='KANConv2d', bias=False, with_scaler=True, init='efficient_kan', basis=dict(type='BSpline', grid_size=10))
kan_linear = dict(
    bias=False, with_scaler=True, init='efficient_kan',
    basis=dict(type='BSpline', grid_size=10, grid_range=(0, 1), noise_scale=0.01))
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.ConvNet', channels=(5, 5)),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=125, init_cfg=None, topk=1,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.0))
param_scheduler = []
auto_scale_lr = dict(base_batch_size=128)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1), logger=dict(interval=1000))
randomness = dict(seed=0)
