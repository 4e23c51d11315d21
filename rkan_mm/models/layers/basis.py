"""Bases of one-dimensional functions: orthogonal polynomials, each given by its three-term recurrence."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rkan_mm.registry import BASES


class Polynomial(nn.Module):
    r"""Polynomials :math:`P_0=1,\dots,P_d` with :math:`P_{n+1}(x) = (a_n x + b_n) P_n(x) - c_n P_{n-1}(x)`.

    A family supplies :meth:`step`; evaluation and the change to monomials share one loop.

    Args:
        degree: highest degree `d`, at least 1.

    Raises:
        ValueError: ``degree`` is below 1.

    Example:
        >>> Chebyshev(degree=3)(torch.tensor([0.5]))
        tensor([[ 1.0000,  0.5000, -0.5000, -1.0000]])
    """

    second: ClassVar[dict] = dict(degree=2)
    """What the second KAN convolution of an RKAN block changes in the basis of the first (arXiv 2410.05500)."""

    def __init__(self, degree: int = 3) -> None:
        super().__init__()
        if not isinstance(degree, int) or degree < 1:
            raise ValueError(f'{type(self).__name__}: degree must be an integer of at least 1, got {degree!r}')
        self.degree = degree
        # P_j(t) = sum_n monomials[j][n] t^n; plain numbers, so that no device or dtype of the model touches them
        t = np.polynomial.Polynomial([0.0, 1.0])
        rows = self._recur(np.polynomial.Polynomial([1.0]), t)
        self._monomials = tuple(tuple(row.coef.tolist()) for row in rows)

    @abstractmethod
    def step(self, n: int) -> tuple[float, float, float]:
        r"""The coefficients :math:`a_n, b_n, c_n` that lead from degree `n` to `n + 1` (:math:`c_0` is not used)."""

    def _recur(self, one, x) -> list:
        values = [one]
        for n in range(self.degree):
            a, b, c = self.step(n)
            following = (a * x + b) * values[n]
            values.append(following - c * values[n - 1] if n else following)
        return values

    @property
    def num_functions(self) -> int:
        return self.degree + 1

    def forward(self, x: Tensor) -> Tensor:
        """Values of all functions: (...) -> (..., degree + 1)."""
        return torch.stack(self._recur(torch.ones_like(x), x), dim=-1)

    def to_monomials(self, weight: Tensor) -> Tensor:
        """Coefficients of P_0..P_d in the first dimension, (d + 1, ...), to those of 1, t, ..., t^d."""
        rows = range(self.num_functions)
        return torch.stack([
            sum(self._monomials[j][n] * weight[j] for j in rows[n:] if self._monomials[j][n])
            for n in rows
        ])

    def extra_repr(self) -> str:
        return f'degree={self.degree}'


@BASES.register_module()
class Chebyshev(Polynomial):
    """Chebyshev polynomials of the first kind, 2x T_n - T_{n-1}."""

    def step(self, n: int) -> tuple[float, float, float]:
        return (2.0 if n else 1.0), 0.0, 1.0


@BASES.register_module()
class Legendre(Polynomial):
    """Legendre polynomials, ((2n + 1) x P_n - n P_{n-1}) / (n + 1)."""

    def step(self, n: int) -> tuple[float, float, float]:
        return (2 * n + 1) / (n + 1), 0.0, n / (n + 1)


@BASES.register_module()
class Hermite(Polynomial):
    """Physicists' Hermite polynomials, 2x H_n - 2n H_{n-1}."""

    def step(self, n: int) -> tuple[float, float, float]:
        return 2.0, 0.0, 2.0 * n


@BASES.register_module()
class Jacobi(Polynomial):
    r"""Jacobi polynomials :math:`P_n^{(\alpha,\beta)}` in their standard normalisation (DLMF 18.9.2).

    Args:
        degree: highest degree, at least 1.
        alpha, beta: exponents of the weight :math:`(1-x)^\alpha (1+x)^\beta`, each above -1.

    Raises:
        ValueError: an exponent is not above -1.
    """

    def __init__(self, degree: int = 3, alpha: float = 0.5, beta: float = 0.5) -> None:
        if min(alpha, beta) <= -1:
            raise ValueError(f'Jacobi: alpha and beta must be above -1, got alpha={alpha}, beta={beta}')
        self.alpha, self.beta = alpha, beta  # first, as the parent's constructor runs the recurrence
        super().__init__(degree)

    def step(self, n: int) -> tuple[float, float, float]:
        alpha, beta = self.alpha, self.beta
        total = alpha + beta
        if n == 0:
            return (total + 2) / 2, (alpha - beta) / 2, 0.0
        s = 2 * n + total
        scale = 2 * (n + 1) * (n + 1 + total) * s
        return ((s + 1) * (s + 2) * s / scale,
                (s + 1) * (alpha**2 - beta**2) / scale,
                2 * (n + alpha) * (n + beta) * (s + 2) / scale)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}, beta={self.beta}'
