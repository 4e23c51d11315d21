"""From ImageNet weights on a few hundred pictures: AdamW, a short warm-up, a cosine over all iterations."""
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=6, T_max=6, eta_min=1e-6, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
