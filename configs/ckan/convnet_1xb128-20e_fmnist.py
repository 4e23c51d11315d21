"""A net of three convolutions with fewer than 10,000 parameters on Fashion-MNIST, to compare KAN layers with.

Trained on 48,000 images; 12,000 others validate, and the last weights are tested once.
"""
_base_ = '../_base_/ckan_fmnist.py'
model = dict(
    backbone=dict(channels=(16, 24, 20), padding=1, norm_cfg=dict(type='BN')),
    head=dict(in_channels=180))
kfold = dict(type='KFoldDataset', num_splits=5, fold=0, seed=0, dataset={{_base_.train_dataloader.dataset.dataset}})
train_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, **kfold)))
val_dataloader = dict(dataset=dict(dataset=dict(_delete_=True, test_mode=True, **kfold)))
test_dataloader = {{_base_.test_dataloader}}
param_scheduler = [dict(type='CosineAnnealingLR', T_max=20, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(lr=4e-3, weight_decay=1e-2))
