"""Mixed precision in bfloat16, which needs no scaling of the loss, on any device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn

from rkan_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
@MMENGINE_OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """An OptimWrapper whose forward passes run under bfloat16 autocast.

    mmengine's AmpOptimWrapper does the same on a GPU, and refuses a CPU.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
