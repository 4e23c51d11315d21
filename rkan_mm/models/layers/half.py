"""Half precision in layers, and beside autocast."""

import torch
from torch import Tensor

from rkan_mm.models.ops import autocast_dtype

HALF = (torch.float16, torch.bfloat16)


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
