"""FasterKAN's training on a part of Fashion-MNIST: AdamW, clipping, lr times 0.6 after two epochs without a gain."""
_base_ = ['./datasets/fmnist-12k_28.py', 'mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
faster_kan = dict(  # 1 / h = 1 as FasterKAN executes it, with the true gradient
    normalization=dict(type='LN'), with_base=False, bias=False, init='faster_kan',
    basis=dict(type='RSWAF', grid_size=8, grid_range=(-1.2, 1.2), width=1.0))
fast_kan = dict(
    normalization=dict(type='LN'), init='fast_kan', basis=dict(type='GaussianRBF', grid_size=8, grid_range=(-2, 2)))
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.EnhancedFeatureExtractor', arch='faster_kan'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=256, init_cfg=None, topk=1,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-5), clip_grad=dict(max_norm=1.0))
param_scheduler = dict(
    type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater', factor=0.6, patience=1, by_epoch=True)
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=1))
randomness = dict(seed=0)
