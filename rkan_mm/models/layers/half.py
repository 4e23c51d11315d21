"""Half precision in layers, and beside autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import HALF, autocast_dtype

T = TypeVar('T')


def in_single(function: Callable[..., T]) -> Callable[..., T]:
    """For what is summed over a layer's parameters, the first argument: run it without autocast, gradients as ever."""
    @functools.wraps(function)
    def run(layer: nn.Module, *args, **kwargs) -> T:
        parameter = layer.coefficient_parameter
        with torch.autocast('cpu' if parameter.is_meta else parameter.device.type, enabled=False):
            return function(layer, *args, **kwargs)
    return run


def in_full(t: Tensor) -> Tensor:
    """A tensor in single precision where it has half, for sums of squares."""
    return t.float() if t.dtype in HALF else t


def as_autocast(t: Tensor) -> Tensor:
    """A tensor in the half precision that autocast computes in, where it has the other one; else itself.

    Autocast does so before a convolution, but refuses to concatenate such tensors.
    """
    if t.dtype not in HALF:
        return t
    dtype = autocast_dtype(t.device.type)
    return t.to(dtype) if dtype in HALF else t
