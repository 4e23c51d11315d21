"""How much functions without a grid bend: the mean squared second derivative over the range of their inputs."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn

from .grid_update import ELEMENTWISE
from .half import in_full, in_single

POINTS = 64
STEP = 1e-3
"""Of the second difference, as a part of the range, in float64."""
RANGES = {'min-max': (-1.0, 1.0), 'arctan': (-1.0, 1.0), 'standardization': (-3.0, 3.0), 'layer_norm': (-3.0, 3.0)}
"""Of what normalisations over the taps of a patch make of any input."""


@torch.no_grad()
def input_range(layer: nn.Module, x: Tensor) -> Tensor:
    """Least and greatest finite argument of a layer's functions for one input, padded zeros included: (2,).

    Example:
        >>> input_range(KANLinear(2, 2), torch.tensor([[-1.0, 3.0]]))
        tensor([-1.,  3.], dtype=torch.float64)
    """
    if isinstance(layer.normalization, str) and layer.normalization in RANGES:
        return torch.tensor(RANGES[layer.normalization], dtype=torch.float64, device=x.device)
    u = x if isinstance(layer.normalization, str) else layer.seen(x)
    low, high = _finite_ends(u) if u.numel() else u.new_tensor([-1, 1], dtype=torch.float64).unbind()
    padding = getattr(layer, '_reversed_padding_repeated_twice', getattr(layer, 'padding', ()))
    if any(padding) and getattr(layer, 'padding_mode', 'zeros') == 'zeros' and not getattr(layer, 'transposed', False):
        low, high = low.clamp(max=0), high.clamp(min=0)
    return torch.stack([low, high])


def _finite_ends(u: Tensor) -> tuple[Tensor, Tensor]:
    """Without a size that depends on the data: a compiler makes two graphs there, and a GPU is waited for."""
    finite = u.isfinite()
    low, high = torch.where(finite, u, math.inf).amin().double(), torch.where(finite, u, -math.inf).amax().double()
    return torch.where(low <= high, low, -1.0), torch.where(low <= high, high, 1.0)


@in_single
def curvature(layer: nn.Module, ends: Tensor) -> Tensor:
    r"""Mean over a range of :math:`(\partial^2 f / \partial x^2)^2`, summed over the functions :math:`f = s \sum_j c_j
    B_j(u(x))` of a layer.

    The base branch does not count. Where the normalisation is no function of x alone, the derivatives are by what it
    gives.

    Args:
        layer: a KAN layer.
        ends: of the range, (2,), see `input_range`.

    Example:
        >>> layer = KANLinear(1, 1, basis=dict(type='Chebyshev', degree=2), normalization='none')
        >>> layer.basis_weight.data = torch.tensor([[[0.0, 5.0, 1.0]]])
        >>> curvature(layer, torch.tensor([-1.0, 1.0])).item()  # of 2 x^2 - 1 it is 4^2
        16.0
    """
    coefficients = in_full(layer.coefficients())
    coefficients = coefficients.movedim(2, 0).flatten(1)  # (F, functions)
    ends = ends.detach().to(coefficients.device, torch.float64)
    width = (ends[1] - ends[0]).clamp(min=1e-6)
    x = ends[0] + width * torch.linspace(0, 1, POINTS, dtype=torch.float64, device=ends.device)
    step = STEP * width
    u = ELEMENTWISE.get(layer.normalization, lambda x: x) if isinstance(layer.normalization, str) else lambda x: x
    trains = any(parameter.requires_grad for parameter in layer.basis.parameters())
    with contextlib.nullcontext() if trains else torch.no_grad():
        before, here, after = layer.basis(u(torch.stack([x - step, x, x + step])), -1)  # (POINTS, F) each
        second = (before - 2 * here + after) / step**2
        gram = second.mT @ second / POINTS
    return (coefficients * (gram.to(coefficients) @ coefficients)).sum()
