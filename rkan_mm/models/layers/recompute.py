"""Activation checkpointing (``with_cp``) of modules with batch norms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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

    A batch counts once in the running statistics of the norms. Under a tracer or compiler it is a plain call.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (contextlib.nullcontext(), _StatisticsAtRest(module)))
