"""The schedule of adamw-cls.py in 20 epochs, with validation at the end alone."""
_base_ = './adamw-cls.py'
train_cfg = dict(max_epochs=20, val_interval=20)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=19, eta_min=1e-5, by_epoch=True, begin=1, end=20, convert_to_iter_based=True),
]
