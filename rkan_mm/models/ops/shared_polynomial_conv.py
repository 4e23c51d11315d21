"""The convolution of per-tap polynomials with one kernel for all channels, in its depthwise form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 3 << 19
"""Without gradients, a CPU works on parts of the batch of about this size, whose temporaries stay in its caches."""


def shared_polynomial_conv2d(x: Tensor,
                             weight: Tensor,
                             base_weight: Tensor | None = None,
                             normalize: Callable[[Tensor], Tensor] = torch.tanh,
                             base_act: Callable[[Tensor], Tensor] | None = None,
                             stride: tuple[int, int] = (1, 1),
                             padding: tuple[int, int] = (0, 0),
                             dilation: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Sum over taps `p` of :math:`w_p a(x_p) + \sum_{n=0}^d c_{n,p} u(x_p)^n`, for each channel alone, all alike.

    For u(0) = 0 the powers of a padded tap are zero, so zero padding of the powers equals padding the input first, and
    the constants (which padded taps have too) collapse into one number. What is left is `d + 1` depthwise convolutions.

    Args:
        x: input, (B, C, H, W).
        weight: coefficients `c` of the monomials, constants first, (d + 1, kh, kw).
        base_weight: `w`, (kh, kw).
        normalize: `u`, element-wise, with u(0) = 0.
        base_act: `a`, element-wise, with a(0) = 0; None is the identity.
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`.

    Returns:
        (B, C, H', W'), of the dtype that a convolution of ``x`` has (autocast applies).
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
