"""ResNet-50 with the stem for 32 px (ResNet_CIFAR) in mmpretrain's own CIFAR-100 recipe: crops and flips."""
_base_ = 'mmpretrain::resnet/resnet50_8xb16_cifar100.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
custom_hooks = [dict(type='rkan_mm.RunSummaryHook')]
