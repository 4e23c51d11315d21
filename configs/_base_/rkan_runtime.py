"""mmpretrain's runtime with this package, the best checkpoint kept, and best and last accuracy said at the end."""
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
custom_hooks = [dict(type='rkan_mm.RunSummaryHook')]
