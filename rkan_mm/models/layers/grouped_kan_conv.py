"""KAN convolutions of groups of channels: between one kernel for all and one for each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import ModuleList
from torch import Tensor

from rkan_mm.models.ops import (
    identity,
    is_watched,
    refuse_freed,
    refuse_numbers_to_meta,
    shared_polynomial_conv2d_torch,
    static_shape,
)
from rkan_mm.models.ops.shared_polynomial_conv_torch import single_of
from rkan_mm.registry import MODELS

from .basis import Basis, Polynomial
from .grid_update import ELEMENTWISE
from .half import as_autocast
from .shared_kan_conv import SharedKANConv2d
from .symbolic_trace import as_leaf, is_traced


@MODELS.register_module()
class GroupedKANConv2d(ModuleList):
    """A `SharedKANConv2d` for each group of channels: (B, C, H, W) -> (B, C, H', W').

    Polynomials to degree 6 are one depthwise convolution for each power; other bases go group by group.

    Args:
        channels: C.
        groups: of neighbouring channels that share a kernel; C gives each channel its own.
        kwargs: of :class:`SharedKANConv2d`.

    Raises:
        ValueError: ``groups`` do not divide the channels.

    Example:
        >>> conv = GroupedKANConv2d(16, groups=4, kernel_size=3, padding=1)
        >>> conv(torch.rand(1, 16, 7, 7)).shape, len(conv)
        (torch.Size([1, 16, 7, 7]), 4)
    """

    def __init__(self, channels: int, groups: int, **kwargs) -> None:
        if groups < 1 or channels % groups:
            raise ValueError(f'GroupedKANConv2d: groups must divide the {channels} channels, got {groups}')
        super().__init__([SharedKANConv2d(**kwargs) for _ in range(groups)])
        self.channels = channels

    @property
    def basis(self) -> Basis:
        return self[0].basis

    def forward(self, input: Tensor) -> Tensor:  # by the name that it has in PyTorch's layers
        if is_traced(input):
            return as_leaf(self, input)
        if not isinstance(input, Tensor) or input.dim() < 3 or input.is_nested:
            return self[0](input)  # says what is wrong
        if input.is_mkldnn:
            return self.forward(input.to_dense()).to_mkldnn()
        if static_shape(input)[-3] != self.channels:
            first = self[0]
            F.conv2d(input, first.weight.new_zeros(self.channels, 1, *first.kernel_size), None, first.stride,
                     first.padding, first.dilation, self.channels)  # says what is wrong
        if input.dim() == 4 and self._is_plain():
            return self._at_once(input)
        return torch.cat([conv(part) for conv, part in zip(self, input.chunk(len(self), -3), strict=True)], -3)

    def _is_plain(self) -> bool:
        """Whether all are the same polynomials of single elements, and none is watched by hooks."""
        first, *others = self._modules.values()
        kind = self._kind(first)
        return kind is not None and all(self._kind(conv) == kind for conv in others)

    @staticmethod
    def _kind(conv: Any) -> tuple | None:
        """What all must have in common to be computed at once; None where that cannot be."""
        if type(conv) is not SharedKANConv2d or is_watched(conv):
            return None
        own = conv.__dict__  # a module looks long for what is its own
        modules, parameters = own['_modules'], own['_parameters']
        basis, act = modules['basis'], modules.get('base_act')
        if not (isinstance(basis, Polynomial) and basis.by_monomials and own['normalization'] in ELEMENTWISE):
            return None
        if act is not None and (is_watched(act) or next(act.parameters(), None) is not None):
            return None
        if parameters.get('bias') is not None:
            return None
        return (basis.change, [*parameters], [value is None or value.shape for value in parameters.values()],
                own['normalization'], own['stride'], own['padding'], own['dilation'],
                None if act is None else repr(act))

    def _at_once(self, x: Tensor) -> Tensor:
        refuse_numbers_to_meta(self[0].weight, x, identity)
        refuse_freed(x)
        first, x = self[0], as_autocast(x)
        weight = torch.stack([conv.masked(conv.weight) for conv in self], -3)  # (d + 1, G, kh, kw)
        if first.scaler is not None:
            weight = weight * torch.stack([as_autocast(conv.scaler) for conv in self])
        base = None if first.base_weight is None else torch.stack([conv.masked(conv.base_weight) for conv in self])
        return shared_polynomial_conv2d_torch(
            x, self.basis.to_monomials(single_of(weight)), base, ELEMENTWISE[first.normalization], first.base_act,
            first.stride, first.padding, first.dilation)
