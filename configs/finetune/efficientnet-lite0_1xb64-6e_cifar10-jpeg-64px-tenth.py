"""EfficientNet-Lite0 of ImageNet on a tenth of the JPEG copies of CIFAR-10, 450 of each class, enlarged to 64 px."""
_base_ = [
    '../_base_/models/efficientnet-lite0.py',
    '../_base_/datasets/cifar10-jpeg-tenth_64.py',
    '../_base_/schedules/adamw-cls-6e_finetune.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm', 'rkan_mm.datasets.crop_and_flip'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=1))
custom_hooks = [dict(type='rkan_mm.ChannelsLastHook')]
randomness = dict(seed=0)
