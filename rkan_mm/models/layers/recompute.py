"""Activation checkpointing: what is run again in the backward pass instead of kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .symbolic_trace import is_traced


def can_recompute() -> bool:
    """Whether something can be run again later: autograd records, and neither a compiler nor torch.func looks on."""
    return (torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and not torch._C._are_functorch_transforms_active())


def recompute(function: Callable[..., Tensor], *args) -> Tensor:
    """``function(*args)``, which keeps only its arguments for the backward pass and is run again there."""
    if not can_recompute():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


class _StatisticsAtRest:
    """Meanwhile the batch norms normalise by the batch as before and leave their running statistics as they are."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        self.before = []

    def __enter__(self) -> None:
        self.before.append([(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms])
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.before.pop(), strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def with_checkpoint(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` of ``module``, run again in the backward pass instead of keeping what it computes.

    A batch counts once in the running statistics of the norms. Under a tracer, a compiler or torch.func it is plain.
    """
    if not can_recompute() or is_traced(x):
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (contextlib.nullcontext(), _StatisticsAtRest(module)))
