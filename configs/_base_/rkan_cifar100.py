"""RKAN's CIFAR-100 recipe for any backbone: CutMix on half of the batches, MixUp on 0.3 of them. RKAN used --amp."""
_base_ = [
    './datasets/cifar100_128.py',
    './schedules/rkan-200e.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0, use_soft=True),
        topk=(1, 5)),
    train_cfg=dict(augments=[dict(type='CutMix', alpha=1.0), dict(type='Mixup', alpha=0.2)], probs=[0.5, 0.3]))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
