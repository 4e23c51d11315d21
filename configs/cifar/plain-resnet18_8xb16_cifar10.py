"""ResNet-18 with the stem for 32 px (ResNet_CIFAR) in mmpretrain's own CIFAR-10 recipe: crops and flips."""
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
custom_hooks = [dict(type='rkan_mm.RunSummaryHook')]
