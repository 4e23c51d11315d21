"""Training with weights, gradients and optimizer states sharded over processes by torch's FSDP."""

from __future__ import annotations

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from rkan_mm.registry import STRATEGIES


@STRATEGIES.register_module()
@MMENGINE_STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy, with its arguments; four things that it leaves out are done.

    It resumes under torch 2.1 and later, which take the arguments of ``optim_state_dict_to_load`` in another order;
    ``clip_grad`` takes the norm over all processes, not that of each one's shard; ``sync_bn`` is heeded; and without a
    GPU the processes shard on the CPU.
    """

    def _wrap_model(self, model: nn.Module) -> FullyShardedDataParallel:
        if get_device() == 'cpu':
            self.model_wrapper = {'device_id': 'cpu', **(self.model_wrapper or {})}
        return super()._wrap_model(self.convert_model(model))

    def build_optim_wrapper(self, optim_wrapper: BaseOptimWrapper | dict, model: nn.Module) -> BaseOptimWrapper:
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(wrapper, 'clip_func', None) is torch.nn.utils.clip_grad_norm_:
            wrapper.clip_func = lambda params, **kwargs: model.clip_grad_norm_(**kwargs)
        return wrapper

    def load_optim_state_dict(self, state_dict: dict) -> None:
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict))
