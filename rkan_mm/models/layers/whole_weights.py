"""What is done to the weights of a KAN layer from outside is done to all of them, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .mixin import LayerMixin


def laid_out(out: Tensor, *like: Tensor | None) -> Tensor:
    """A map, in channels_last where one of the others, the input or the weights, is, as PyTorch's convolutions do."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return out
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(out.dim())
    for t in like if layout else ():
        if t is not None and t.dim() == out.dim() and not t.is_contiguous() and t.is_contiguous(memory_format=layout):
            return out.contiguous(memory_format=layout)
    return out


class WholeWeights(LayerMixin):
    """Mixin of KAN layers: norms of weights, and layouts in memory.

    A weight norm or a spectral norm of ``weight`` is one of a linear layer. In a KAN layer it would bind the base
    branch (or, where one kernel serves all channels, the functions) and leave the rest free, so it is refused.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in ('weight_g', 'weight_orig'):  # of weight_norm and spectral_norm of torch.nn.utils
            self._refuse()
        super().register_parameter(name, param)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'parametrizations':  # of torch.nn.utils.parametrize
            self._refuse()
        super().__setattr__(name, value)

    def _refuse(self) -> None:
        if 'weight' in self._parameters:  # which they remove first
            return
        name = type(self).__name__.removeprefix('Parametrized')
        raise TypeError(f'{name}: a spectral norm, weight norm or other parametrization of weight would '
                        'leave out the rest of the functions. Bound them by KANRegularizationHook or weight decay, or '
                        "take an ordinary layer here (with_spectral_norm=False of mmcv's ConvModule)")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Layouts such as channels_last are for the weights of an ordinary layer; these have one dimension more."""
        coefficients = self.coefficient_parameter
        shape = coefficients.shape

        def apply(t: Tensor) -> Tensor:
            flat = t.dim() > 3 and t.shape == shape and t.is_contiguous()
            return fn(t.view(shape[0], -1)).view(shape) if flat else fn(t)

        return super()._apply(apply, recurse)
