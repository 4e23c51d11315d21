"""Features whose channels lie side by side in memory, as tensor cores and CPUs like them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from rkan_mm.registry import HOOKS

from .run_error import RunError
from .wrapping import wrap_again

SHARDS = ('ChannelsLastHook (--channels-last): FSDP keeps weights as flat shards, which cannot be laid out anew. '
          'Leave it out, or train with DistributedDataParallel, without configs/_base_/fsdp.py.')


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay the weights of 2-D convolutions out as channels_last; their outputs follow.

    The compiled operations of mmcv (RoIAlign, deformable convolutions and others) take every tensor for a contiguous
    one, and give wrong numbers for these without a word. Their weights and inputs stay contiguous here.

    Args:
        model: changed in place.

    Returns:
        The model.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if _is_of_mmcv_ops(module):
            for parameter in module.parameters():
                parameter.data = parameter.data.contiguous()
            if _contiguous not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_contiguous, with_kwargs=True)
    return model


def _is_of_mmcv_ops(module: nn.Module) -> bool:
    return any(kind.__module__.startswith('mmcv.ops.') for kind in type(module).__mro__)


def _contiguous(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    def laid_out(value: Any) -> Any:
        return value.contiguous() if isinstance(value, Tensor) and value.dim() == 4 else value

    return tuple(map(laid_out, args)), {name: laid_out(value) for name, value in kwargs.items()}


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class ChannelsLastHook(Hook):
    """:func:`to_channels_last` of the model, once its weights are loaded.

    Raises:
        RunError: FSDP shards the model.
    """

    priority = 'VERY_HIGH'

    def _convert(self, runner: Runner) -> None:
        if any(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()):
            raise RunError(SHARDS)
        wrapped = is_model_wrapper(runner.model)
        model = to_channels_last(runner.model.module if wrapped else runner.model)
        if wrapped:  # what the wrapper has prepared for the gradients lies in memory as the weights did
            wrap_again(runner, model)

    def before_train(self, runner: Runner) -> None:
        self._convert(runner)

    def before_test(self, runner: Runner) -> None:
        self._convert(runner)
