"""The convolution of per-tap polynomials with one kernel for all channels, in PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 3 << 19
"""Without gradients, a CPU works on parts of the batch of about this size, whose temporaries stay in its caches."""


class Window(NamedTuple):
    """How the taps lie on the input: as in :func:`torch.nn.functional.conv2d`."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """Of an input (B, C, H, W) and kernels (..., kh, kw); less than one where the kernel does not fit."""
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1
                         for n, k, s, p, d in zip(x.shape[2:], weight.shape[-2:], *self, strict=True))
        return height, width


def identity(x: Tensor) -> Tensor:
    return x


def shared_polynomial_conv2d_torch(x: Tensor,
                                   weight: Tensor,
                                   base_weight: Tensor | None = None,
                                   normalize: Callable[[Tensor], Tensor] = torch.tanh,
                                   base_act: Callable[[Tensor], Tensor] | None = None,
                                   stride: tuple[int, int] = (1, 1),
                                   padding: tuple[int, int] = (0, 0),
                                   dilation: tuple[int, int] = (1, 1)) -> Tensor:
    """:func:`shared_polynomial_conv2d` on every device, in every dtype and under every transform: the oracle.

    For u(0) = 0 the powers of a padded tap are zero, so zero padding of the powers equals padding the input first, and
    the constants (which padded taps have too) collapse into one number. What is left is `d + 1` depthwise convolutions.
    """
    channels = x.shape[1]
    constant, *kernels = weight.unbind()

    def depthwise(maps: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(maps, kernel.expand(channels, 1, *kernel.shape), None, stride, padding, dilation, channels)

    def terms(x: Tensor, in_place: bool):
        if base_weight is not None:
            yield depthwise(x if base_act is None else base_act(x), base_weight)
        u = power = normalize(x)
        yield depthwise(u, kernels[0])
        for n, kernel in enumerate(kernels[1:]):
            power = power.mul_(u) if in_place and n else power * u
            yield depthwise(power, kernel)

    if x.device.type == 'cpu' and not (torch.is_grad_enabled() or torch.compiler.is_compiling()
                                       or torch.jit.is_tracing()):
        rows = max(1, CHUNK_BYTES // max(1, x[:1].numel() * x.element_size()))
        return torch.cat([_sum_in_place(terms(part, True)).add_(constant.sum()) for part in x.split(rows)])
    return sum(terms(x, False), constant.sum())


def _sum_in_place(terms) -> Tensor:
    total = next(terms)
    for term in terms:
        total.add_(term)
    return total
