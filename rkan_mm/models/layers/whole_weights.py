"""What is done to the weights of a KAN layer from outside is done to all of them, or not at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .mixin import LayerMixin
from .teaching import teach


def laid_out(out: Tensor, *like: Tensor | None) -> Tensor:
    """A map, in channels_last where one of the others, the input or the weights, is, as PyTorch's convolutions do."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return out
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(out.dim())
    for t in like if layout else ():
        if t is not None and t.dim() == out.dim() and not t.is_contiguous() and t.is_contiguous(memory_format=layout):
            return out.contiguous(memory_format=layout)
    return out


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[str, weakref.ref | None]] = weakref.WeakKeyDictionary()
"""The parameters of each layer in their order, as they were last registered or converted."""


class WholeWeights(LayerMixin):
    """Mixin of KAN layers: norms and pruning of weights by torch, and layouts in memory.

    A weight norm, a spectral norm or a pruning of ``weight`` is one of a linear layer. In a KAN layer it would reach
    the base branch (or, where one kernel serves all channels, the functions) and leave the rest free, so it is refused.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in ('weight_g', 'weight_orig'):  # of weight_norm, spectral_norm and prune of torch.nn.utils
            self._refuse()
        super().register_parameter(name, param)
        self._remember()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'parametrizations' and 'weight' not in self._parameters:  # by a name imported before us
            self.__class__ = type(self).__bases__[0]  # torch has just put a class before it
            self._refuse()
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == 'weight' and 'parametrizations' in self._modules:  # others are parametrized: see __setattr__
            self._refuse()
        super().__delattr__(name)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._remember()

    def _remember(self) -> None:
        if 'weight' in self._parameters:
            _KNOWN[self] = {name: None if p is None else weakref.ref(p) for name, p in self._parameters.items()}

    def _refuse(self) -> NoReturn:
        if 'weight' not in self._parameters:  # which norms remove first
            known = {name: p if p is None else p() for name, p in _KNOWN.get(self, {}).items()}
            own = {**known, **self._parameters}
            self._parameters.clear()
            self._parameters.update(own)
        raise TypeError(
            f'{type(self).__name__}: a spectral norm, weight norm, pruning or other parametrization of weight would '
            'leave out the rest of the functions. Bound them by KANRegularizationHook or weight decay, prune them by '
            "rkan_mm.models.prune, or take an ordinary layer here (with_spectral_norm=False of mmcv's ConvModule)")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Layouts such as channels_last are for the weights of an ordinary layer; these have one dimension more."""
        coefficients = self.coefficient_parameter
        shape = coefficients.shape

        def apply(t: Tensor) -> Tensor:
            flat = t.dim() > 3 and t.shape == shape and t.is_contiguous()
            return fn(t.view(shape[0], -1)).view(shape) if flat else fn(t)

        super()._apply(apply, recurse)
        self._remember()
        return self


def teach_parametrize() -> None:
    """Have torch refuse parametrizations before it changes the weight, which some do (``orthogonal``)."""
    teach(torch.nn.utils.parametrize, 'register_parametrization', _register_parametrization)


def _register_parametrization(plain: Callable, module: nn.Module, tensor_name: str, *args, **kwargs) -> nn.Module:
    if tensor_name == 'weight' and isinstance(module, WholeWeights):
        module._refuse()
    return plain(module, tensor_name, *args, **kwargs)
