"""Small classifiers from random weights: AdamW, one epoch of warm-up, a cosine over the iterations of all 40."""
train_cfg = dict(by_epoch=True, max_epochs=40, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=39, eta_min=1e-5, by_epoch=True, begin=1, end=40, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=64)
