"""What hooks of a run need that look into its model: hooks of modules, steps that are not compiled, whole layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from rkan_mm.models.layers.sparsity import Sparsity


def refuse_shards(hook: Hook, modules: Iterable[nn.Module]) -> None:
    """Raise ValueError where a KAN layer lies in one of these units of FSDP, or is sharded by itself, as by FSDP2."""
    for module in modules:
        inner = module.modules() if isinstance(module, FullyShardedDataParallel) else ()
        if any(isinstance(each, Sparsity) for each in inner) or (
                isinstance(module, Sparsity) and hasattr(module.coefficient_parameter, 'device_mesh')):
            raise ValueError(f'{type(hook).__name__}: it needs the whole coefficients of KAN layers, and FSDP shards '
                             'them. Train with DistributedDataParallel, or leave this hook out')


def pace(runner: Runner) -> tuple[int, bool]:
    """Of how many iterations gradients are accumulated for a step, and whether there are none since the last."""
    wrappers = getattr(runner.optim_wrapper, 'optim_wrappers', dict(one=runner.optim_wrapper))
    slowest = max(wrappers.values(), key=lambda wrapper: getattr(wrapper, '_accumulative_counts', 1))
    counts = getattr(slowest, '_accumulative_counts', 1)
    return counts, counts == 1 or slowest._inner_count % counts == 0


def is_backward() -> bool:
    """Whether a backward pass is under way: what is called there is checkpointed, and runs again."""
    return torch._C._current_graph_task_id() != -1


class HereAlone:
    """A hook of a module; in a copy that is made of the model meanwhile it does nothing."""

    def __init__(self, function: Callable | None) -> None:
        self.function = function

    def __call__(self, *args) -> Any:
        return None if self.function is None else self.function(*args)

    def __reduce__(self) -> tuple:
        return HereAlone, (None,)


class Uncompiled:
    """The ``train_step`` of a model for one call, uncompiled, as compiled code knows no hooks that came later.

    The model has its own again before that call begins, and the compiler is on again after it, also if it is broken
    off.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = getattr(model, '_orig_mod', model)
        self.own, self.step = vars(self.model).get('train_step'), self.model.train_step
        self.model.train_step = self

    def __call__(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        self.give_back()
        with torch.compiler.set_stance('force_eager') if hasattr(torch.compiler, 'set_stance') else nullcontext():
            return self.step(*args, **kwargs)

    def give_back(self) -> None:
        if vars(self.model).get('train_step') is self:
            del self.model.train_step
            if self.own is not None:
                self.model.train_step = self.own
