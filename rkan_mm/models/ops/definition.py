"""What the kernels for KAN layers compute, in PyTorch's own operations: for any dtype, derivative and device.

Of what the forward pass kept alone: the layer may be another by the time of the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .functions import Functions


def expand_by_definition(x: Tensor, functions: Functions, base: str, squash: bool, centre: bool) -> Tensor:
    """Values of the functions of u(x), u = tanh or nothing, behind that of a base function of x itself.

    Args:
        x: (B, C, N) with a grid for each channel or for all, or (B, N), where each element may have its own.
        functions: which.
        base: ``'none'``, ``'identity'`` or ``'silu'``.
        squash: whether u is tanh.
        centre: whether each function's value at u = 0 is subtracted.

    Returns:
        (B, C, P, N), or (B, P, N).
    """
    values = _values(x.tanh() if squash else x, functions)
    if centre:
        values = values - _values(torch.zeros_like(x), functions)
    if base != 'none':
        values = torch.cat([(x if base == 'identity' else x * x.sigmoid()).unsqueeze(-1), values], -1)
    return values.transpose(-1, -2)


def _values(u: Tensor, functions: Functions) -> Tensor:
    """With the functions last."""
    if functions.kind == 'polynomial':
        found = [torch.zeros_like(u), torch.ones_like(u)]
        for a, b, c in functions.points.to(u).T:
            found.append((a * u + b) * found[-1] - c * found[-2])
        return torch.stack(found[2:], -1)
    points, inverse = (t.to(u) for t in functions._replace(points=functions.points.to(u)).middles())
    inverse = inverse[:, None]
    if u.dim() == 3:  # a grid belongs to a row
        points, inverse = points[:, None], inverse[:, None]
    z = (u.unsqueeze(-1) - points) * inverse
    if functions.kind in ('gaussian', 'switch'):
        z = z.clamp(-30, 30)
        return torch.exp(-z * z) if functions.kind == 'gaussian' else 1 - z.tanh()**2
    order = int(functions.kind.removeprefix('spline'))
    outer, inner = (((order + sign) / 2 - z.abs()).relu() for sign in (1, -1))
    return {1: outer, 2: outer**2 / 2 - 1.5 * inner**2, 3: outer**3 / 6 - inner**3 * 2 / 3}[order]


def conv_by_definition(x: Tensor, basis_weight: Tensor, weight: Tensor | None, scaler: Tensor | None,
                       mask: Tensor | None, bias: Tensor | None, functions: Functions, base: str, squash: bool,
                       constant: bool, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """The KAN convolution of (B, C, H, W), whose zeros are padded before the functions.

    Args:
        x, functions, base, squash: as in :func:`expand_by_definition`.
        basis_weight: (out, in, F, kh, kw), or (out, in, F) for one tap.
        weight, scaler, mask: of the base branch, factors of the functions, factors of both, (out, in, kh, kw) likewise.
        bias: (out,).
        constant: whether the first of F functions is 1 everywhere and not among ``functions``.
        stride, padding: as in :func:`torch.nn.functional.conv2d`.
    """
    if basis_weight.dim() == 3:
        basis_weight, weight, scaler, mask = (t if t is None else t[..., None, None]
                                              for t in (basis_weight, weight, scaler, mask))
    coefficients = basis_weight if scaler is None else basis_weight * scaler.unsqueeze(2)
    if mask is not None:
        coefficients = coefficients * mask.unsqueeze(2)
        weight = weight if weight is None else weight * mask
    kernel = coefficients[:, :, 1:] if constant else coefficients
    kernel = kernel if weight is None else torch.cat([weight.unsqueeze(2), kernel], 2)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    planes = expand_by_definition(x.flatten(2), functions, base, squash, False)  # (B, C, P, N)
    y = F.conv2d(planes.flatten(1, 2).unflatten(2, x.shape[2:]), kernel.flatten(1, 2), bias, stride)
    return y + coefficients[:, :, 0].sum((1, 2, 3))[:, None, None] if constant else y
