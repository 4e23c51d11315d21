"""Weights, gradients and optimizer states sharded over all GPUs by torch's FSDP: one more base for any config.

A unit of ``classes`` is gathered while it runs. Checkpoints are whole ones in a single file, as without FSDP.
"""
runner_type = 'FlexibleRunner'
strategy = dict(
    type='rkan_mm.ResumableFSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy=dict(
            type='rkan_mm.wrap_classes',
            classes=('BasicBlock', 'Bottleneck', 'RKANBlock', 'Shared2FCBBoxHead', 'FCNMaskHead'))))
