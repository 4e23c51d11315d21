"""Activation checkpointing: what is run again in the backward pass instead of kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.checkpoint import checkpoint

from rkan_mm.models.ops import SameForm
from rkan_mm.models.ops.gate import is_traced_early

from .locks import open_after_fork
from .symbolic_trace import is_traced

LOCK = open_after_fork()
MOMENTA: dict[nn.Module, tuple[int, float | None]] = {}
"""Of norms at rest, and how many passes of this or other threads hold them so."""
RANDOM, NOT_RANDOM = (nn.RReLU, _DropoutNd), ('torch.nn.modules.', 'mmcv.cnn.bricks.wrappers', 'mmengine.', 'rkan_mm.')


def can_recompute() -> bool:
    """Whether something can be run again later: autograd records, and neither a tracer nor torch.func looks on."""
    return (torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and not torch._C._are_functorch_transforms_active()
            and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None and not is_traced_early()
            and torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is None)


def recompute(function: Callable[..., Tensor], *args, reads: Sequence[nn.Module | None] = ()) -> Tensor:
    """``function(*args)``, which keeps only its arguments for the backward pass and is run again there.

    Args:
        function: a layer's method, perhaps.
        args: tensors and others.
        reads: modules whose own parameters the gradients depend on.
    """
    owner = getattr(function, '__self__', None)
    if not can_recompute() or not any_needs_grad(*(each for each in args if isinstance(each, Tensor)), owner, *reads):
        return function(*args)
    drawing = [module for module in reads if module is not None and any(map(_may_draw, module.modules()))]
    if any(isinstance(each, nn.RReLU) for module in drawing for each in module.modules()):
        return function(*args)  # torch saves its noise before it is drawn, and what runs again stops there
    layers = [*owner.modules()] if owner is not None else []
    return checkpoint(function, *map(_no_leaf, args), use_reentrant=False, preserve_rng_state=bool(drawing),
                      context_fn=lambda: _contexts(_SameTensors(layers, reads)))


def any_needs_grad(*inputs: Tensor | nn.Module | None) -> bool:
    """Whether gradients go to one of these tensors or modules, through what comes after."""
    return any(each.requires_grad if isinstance(each, Tensor) else any(p.requires_grad for p in each.parameters())
               for each in inputs if each is not None)


def _may_draw(module: nn.Module) -> bool:
    """Whether it may take random numbers in training."""
    return module.training and (isinstance(module, RANDOM) or not type(module).__module__.startswith(NOT_RANDOM))


def _no_leaf(x: Any) -> Any:
    """Modules that are called with leaves in a backward pass fail under ``FlopCounterMode``, by a limit of autograd."""
    return x.view_as(x) if isinstance(x, Tensor) and x.is_leaf and x.requires_grad else x


def _contexts(again: _SameGrids) -> tuple[contextlib.AbstractContextManager, _SameGrids]:
    """Those of the forward pass and of its repetition."""
    @contextlib.contextmanager
    def first() -> Iterator[None]:
        yield
        again.see()

    return first(), again


class _SameGrids(SameForm):
    """What is computed again needs the grids and coefficients that it had, where layers follow their data."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        super().__init__(modules)
        self.layers = [module for module in modules if hasattr(module, 'grid_changes')]
        self.see()

    def see(self) -> None:
        """Take the grids as they are: at the end of the forward pass, as hooks may lay them at the beginning."""
        self.changes = [(layer, layer.grid_changes) for layer in self.layers]

    def __enter__(self) -> None:
        self.check()
        super().__enter__()

    def check(self) -> None:
        for layer, changes in self.changes:
            if layer.grid_changes != changes:
                raise RuntimeError(f'backward() of a loss from before a {type(layer).__name__} changed its grid; '
                                   "what was not kept (memory='low', with_cp) cannot be computed again. Call it before "
                                   'the change, or compute the loss again')


class _SameTensors(_SameGrids):
    """And it needs the tensors that its layers had, as for any other layer of PyTorch.

    Others may have taken their places: those of ``functional_call`` have left, a checkpoint was assigned, or a mask is
    new. Parameters may have been frozen or thawed, as a discriminator's are between the two losses of a step. Nobody
    may have stepped them in place, but for the layer's bias, on which no gradient depends. What parametrizations write
    to, as a spectral norm does in each pass, is put back to what it was before the pass.
    """

    def __init__(self, layers: Sequence[nn.Module], reads: Sequence[nn.Module | None]) -> None:
        super().__init__(layers)
        held: list[tuple[dict[str, Any], str, Any]] = [
            (owner, name, value) for layer in layers for owner in (layer._parameters, layer._buffers, layer.__dict__)
            for name, value in owner.items() if isinstance(value, Tensor)]
        held += [(layer.__dict__, 'mask', layer.mask) for layer in layers if hasattr(layer, 'mask')]
        self.held = [(*each, each[2] is not None and each[2].requires_grad) for each in held]
        computed = [layer for layer in layers if isinstance(layer, ParametrizationList)]
        self.written = [(part._buffers, name, t.clone()) for each in computed for part in each.modules()
                        for name, t in part._buffers.items() if t is not None]
        read = [t for module in reads if module is not None
                for name, t in (*module._parameters.items(), *module._buffers.items())
                if t is not None and (name != 'bias' or module not in layers[:1])]
        bias = getattr(getattr(layers[0], 'parametrizations', None), 'bias', None) if layers else None
        read += [t for each in computed if each is not bias for t in each.parameters()]
        self.versions = [(t, t._version) for t in read if not t.is_inference()]

    def check(self) -> None:
        super().check()
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError('one of the parameters needed for gradient computation has been modified by an inplace '
                               'operation, such as optimizer.step(), since the forward pass. Call backward() before it')

    def __enter__(self) -> None:
        super().__enter__()
        held = [(owner, name, value if value is None or value.requires_grad == trained or not value.is_leaf
                 else value.detach().requires_grad_(trained)) for owner, name, value, trained in self.held]
        changed = [(owner, name, value) for owner, name, value in held if owner.get(name) is not value]
        changed += [(owner, name, value.clone()) for owner, name, value in self.written]
        self.before.append([(owner, name, owner.get(name)) for owner, name, _ in changed])
        for owner, name, value in changed:
            owner[name] = value

    def __exit__(self, *error) -> None:
        for owner, name, value in self.before.pop():
            owner[name] = value
        super().__exit__(*error)


class _StatisticsAtRest(_SameGrids):
    """Meanwhile the batch norms normalise by the batch as before and leave their running statistics as they are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.modules())
        self.norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]

    def __enter__(self) -> None:
        super().__enter__()
        self.before.append([norm.num_batches_tracked.clone() for norm in self.norms])
        with LOCK:
            for norm in self.norms:
                times, momentum = MOMENTA.get(norm, (0, norm.momentum))
                MOMENTA[norm] = times + 1, momentum
                norm.momentum = 0.0

    def __exit__(self, *error) -> None:
        with LOCK:
            for norm in self.norms:
                times, momentum = MOMENTA.pop(norm)
                if times > 1:
                    MOMENTA[norm] = times - 1, momentum
                else:
                    norm.momentum = momentum
        for norm, batches in zip(self.norms, self.before.pop(), strict=True):
            norm.num_batches_tracked.copy_(batches)
        super().__exit__(*error)


def with_checkpoint(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` of ``module``, run again in the backward pass instead of keeping what it computes.

    A batch counts once in the running statistics of the norms. Under a tracer, a compiler or torch.func it is plain.
    """
    if not can_recompute() or is_traced(x) or not any_needs_grad(x, module):
        return function(x)
    return checkpoint(function, _no_leaf(x), use_reentrant=False,
                      preserve_rng_state=any(map(_may_draw, module.modules())),
                      context_fn=lambda: _contexts(_StatisticsAtRest(module)))
