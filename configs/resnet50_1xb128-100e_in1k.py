"""ResNet-50 in RKAN's ImageNet recipe: CutMix on half of the batches, MixUp on 0.3 of them. RKAN used --amp."""
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    './_base_/datasets/in1k_224.py',
    './_base_/schedules/rkan-100e.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(
    head=dict(loss=dict(use_soft=True)),
    train_cfg=dict(augments=[dict(type='CutMix', alpha=1.0), dict(type='Mixup', alpha=0.2)], probs=[0.5, 0.3]))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
