"""RKAN's classification schedule for small images: as for ImageNet, with 200 epochs and a weight decay of 5e-4."""
_base_ = './rkan-100e.py'
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=10),
    dict(type='CosineAnnealingLR', T_max=190, eta_min=1e-5, by_epoch=True, begin=10, end=200),
]
train_cfg = dict(max_epochs=200)
