"""A ResNet-18 with the stem for 32 px and a quarter of the width on JPEG copies of CIFAR-10, from random weights."""
_base_ = [
    '../_base_/models/resnet18-w16_cifar.py',
    '../_base_/datasets/cifar10-jpeg_32.py',
    '../_base_/schedules/adamw-cls-20e.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['rkan_mm', 'rkan_mm.datasets.crop_and_flip'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=128)
randomness = dict(seed=0)
