"""Activation checkpointing: what is run again in the backward pass instead of kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rkan_mm.models.ops import SameForm

from .symbolic_trace import is_traced


def can_recompute() -> bool:
    """Whether something can be run again later: autograd records, and neither a tracer nor torch.func looks on."""
    return (torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and not torch._C._are_functorch_transforms_active()
            and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None  # make_fx
            and torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None)


def recompute(function: Callable[..., Tensor], *args, reads: Sequence[nn.Module | None] = ()) -> Tensor:
    """``function(*args)``, which keeps only its arguments for the backward pass and is run again there.

    Args:
        function: a layer's method, perhaps.
        args: tensors and others.
        reads: modules whose own parameters the gradients depend on.
    """
    if not can_recompute():
        return function(*args)
    layers = [function.__self__] if hasattr(function, '__self__') else []
    return checkpoint(function, *map(_no_leaf, args), use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (contextlib.nullcontext(), _SameParameters(layers, reads)))


def _no_leaf(x: Any) -> Any:
    """Modules that are called with leaves in a backward pass fail under ``FlopCounterMode``, by a limit of autograd."""
    return x.view_as(x) if isinstance(x, Tensor) and x.is_leaf and x.requires_grad else x


class _SameGrids(SameForm):
    """What is computed again needs the grids and coefficients that it had, where layers follow their data."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        super().__init__(modules)
        self.changes = [(module, module.grid_changes) for module in modules if hasattr(module, 'grid_changes')]

    def __enter__(self) -> None:
        for layer, changes in self.changes:
            if layer.grid_changes != changes:
                raise RuntimeError(f'backward() of a loss from before a {type(layer).__name__} changed its grid; '
                                   "what was not kept (memory='low', with_cp) cannot be computed again. Call it before "
                                   'the change, or compute the loss again')
        super().__enter__()


class _SameParameters(_SameGrids):
    """Nor may somebody have stepped parameters in place, as for any other layer of PyTorch."""

    def __init__(self, layers: Sequence[nn.Module], reads: Sequence[nn.Module | None]) -> None:
        super().__init__(layers)
        self.versions = [(p, p._version) for module in reads if module is not None
                         for p in module._parameters.values() if p is not None and not p.is_inference()]

    def __enter__(self) -> None:
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError('one of the parameters needed for gradient computation has been modified by an inplace '
                               'operation, such as optimizer.step(), since the forward pass. Call backward() before it')
        super().__enter__()


class _StatisticsAtRest(_SameGrids):
    """Meanwhile the batch norms normalise by the batch as before and leave their running statistics as they are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.modules())
        self.norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
        self.statistics = []

    def __enter__(self) -> None:
        super().__enter__()
        self.statistics.append([(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms])
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.statistics.pop(), strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
        super().__exit__(*error)


def with_checkpoint(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` of ``module``, run again in the backward pass instead of keeping what it computes.

    A batch counts once in the running statistics of the norms. Under a tracer, a compiler or torch.func it is plain.
    """
    if not can_recompute() or is_traced(x):
        return function(x)
    return checkpoint(function, _no_leaf(x), use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (contextlib.nullcontext(), _StatisticsAtRest(module)))
