"""Bases without a grid that are not polynomials: Fourier series and rational functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import as_type_of, static_shape
from rkan_mm.registry import BASES

from .base import Basis
from .renew import placed


@BASES.register_module()
class Fourier(Basis):
    r"""Cosines and sines: :math:`\cos(2\pi n x / T)` for n = 1..N, then the sines.

    Args:
        num_frequencies: `N`, at least 1.
        period: `T`.

    Raises:
        ValueError: ``num_frequencies`` is below 1.
    """

    def __init__(self, num_frequencies: int = 4, period: float = 2 * math.pi) -> None:
        super().__init__()
        if not isinstance(num_frequencies, int) or num_frequencies < 1:
            raise ValueError(f'Fourier: num_frequencies must be an integer of at least 1, got {num_frequencies!r}')
        self.num_frequencies, self.period = num_frequencies, period

    @property
    def num_functions(self) -> int:
        return 2 * self.num_frequencies

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        angles = [x * (2 * math.pi * n / self.period) for n in range(1, self.num_frequencies + 1)]
        values = [angle.cos() for angle in angles] + [angle.sin() for angle in angles]
        return torch.stack(values, dim + 1 if dim >= 0 else dim)

    def extra_repr(self) -> str:
        return f'num_frequencies={self.num_frequencies}, period={self.period:g}'


@BASES.register_module()
class Rational(Basis):
    r"""Safe Pade functions of KAT (arXiv 2409.10594): :math:`x^n / (1 + |q_1 x + \dots + q_m x^m|)` for n = 0..d.

    A layer's coefficients are the numerator; the denominator `q` is a parameter that all functions of a layer share.
    It is computed in `x / max(|x|, 1)`, so that no power overflows.

    Args:
        degree: `d`, at least 1.
        denominator: `m`, at least 1; with ``degree - denominator`` at most 1 the functions grow no faster than x.

    Raises:
        ValueError: ``degree`` or ``denominator`` is below 1.
    """

    def __init__(self, degree: int = 5, denominator: int = 4) -> None:
        super().__init__()
        if min(degree, denominator) < 1:
            raise ValueError(f'Rational: degree and denominator must be at least 1, got {degree} and {denominator}')
        self.degree = degree
        self.denominator = nn.Parameter(torch.empty(denominator))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """1 + x^m: bounded below by 1, and of the order that tames the numerator."""
        q = self.denominator
        with torch.no_grad():
            q.copy_(placed(torch.arange(1, len(q) + 1, device=q.device).eq(len(q)), q))

    @property
    def num_functions(self) -> int:
        return self.degree + 1

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        q = as_type_of(self.denominator, x)
        m = static_shape(q)[0]
        scale = x.abs().clamp(min=1)
        t, shrink = x / scale, 1 / scale
        # all powers divided by scale^m
        below = sum(q[k - 1] * t**k * shrink**(m - k) for k in range(1, m + 1)).abs() + shrink**m
        values = [t**n * (scale**(n - m) if n > m else shrink**(m - n)) / below for n in range(self.degree + 1)]
        return torch.stack(values, dim + 1 if dim >= 0 else dim)

    def extra_repr(self) -> str:
        return f'degree={self.degree}, denominator={len(self.denominator)}'
