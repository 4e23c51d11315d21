"""The convolution of per-tap polynomials with one kernel for all channels, in its depthwise form."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def shared_polynomial_conv2d(t: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1),
                             padding: tuple[int, int] = (0, 0), dilation: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Sum over taps `p` of :math:`\sum_{n=0}^d w_{n,p} t_p^n`, for each channel alone, all channels alike.

    Powers of a zero are zero, so zero padding of the powers equals padding the input first, and the constants (which
    padded taps have too) collapse into one number. What is left is `d` depthwise convolutions.

    Args:
        t: input, (B, C, H, W).
        weight: coefficients of the monomials, constants first, (d + 1, kh, kw).
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`.

    Returns:
        (B, C, H', W'), of the dtype that a convolution of ``t`` has (autocast applies).

    """
    channels = t.shape[1]
    power, out = t, weight[0].sum()
    for n, plane in enumerate(weight[1:].unbind()):
        if n:
            power = power * t
        out = out + F.conv2d(power, plane.expand(channels, 1, *plane.shape), None, stride, padding, dilation, channels)
    return out
