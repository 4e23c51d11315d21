"""Polynomial bases: families given by their three-term recurrence, and Bernstein's."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rkan_mm.models.ops import Functions, as_constant, as_type_of, has_hooks, is_transformed
from rkan_mm.models.ops.shared_polynomial_conv_torch import MAX_DEGREE
from rkan_mm.registry import BASES

from .base import Basis


class Polynomial(Basis):
    """`d + 1` polynomials that span those of degree `d`.

    Args:
        degree: `d`, at least 1.

    Raises:
        ValueError: ``degree`` is below 1.

    Example:
        >>> Chebyshev(degree=3)(torch.tensor([0.5]))
        tensor([[ 1.0000,  0.5000, -0.5000, -1.0000]])
    """

    normalization: ClassVar[str] = 'tanh'
    second: ClassVar[dict] = dict(degree=2)

    def __init__(self, degree: int = 3) -> None:
        super().__init__()
        if not isinstance(degree, int) or degree < 1:
            raise ValueError(f'{type(self).__name__}: degree must be an integer of at least 1, got {degree!r}')
        self.degree = degree
        # P_j(t) = sum_n monomials[j][n] t^n; plain numbers, so that no device or dtype of the model touches them
        rows = self.evaluate(np.polynomial.Polynomial([1.0]), np.polynomial.Polynomial([0.0, 1.0]))
        self._monomials = tuple(tuple(row.coef.tolist()) for row in rows)
        self.change = tuple(row[n] if n < len(row) else 0.0 for n in range(degree + 1) for row in self._monomials)
        self._constants = {}

    @abstractmethod
    def evaluate(self, one, x) -> list:
        """The `d + 1` polynomials of ``x``, in any arithmetic; ``one`` is its 1."""

    @property
    def num_functions(self) -> int:
        return self.degree + 1

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        return torch.stack(self.evaluate(torch.ones_like(x), x), dim + 1 if dim >= 0 else dim)

    @property
    def by_monomials(self) -> bool:
        """Whether :meth:`to_monomials` tells the values: no subclass and nobody's hook has others.

        Of a degree above `MAX_DEGREE` it would tell them with few digits: monomials cancel.

        Hooks on all modules and hooks in a trace are of those who count operations, and are to see the usual ones.
        """
        if self.degree > MAX_DEGREE:
            return False
        return type(self).forward is Polynomial.forward and (torch.jit.is_tracing() or not has_hooks(self))

    def to_monomials(self, weight: Tensor) -> Tensor:
        """Coefficients of P_0..P_d in the first dimension, (d + 1, ...), to those of 1, t, ..., t^d."""
        change = as_type_of(as_constant(self._constant, 'change', weight.dtype, weight.device), weight)
        change = change.reshape(self.num_functions, -1, *[1] * (weight.dim() - 1))  # (n, j, ...)
        return (change * weight).sum(1)

    def _constant(self, name: str, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """The numbers of the attribute ``name`` as a tensor, kept for the next call in whatever mode of autograd."""
        key = name, dtype, device
        plain = not is_transformed()  # what a compiler or tracer sees does not last
        if plain and key in self._constants:
            return self._constants[key]
        numbers = getattr(self, name)
        if not plain:
            return torch.tensor(numbers, dtype=dtype, device=device)
        with torch.inference_mode(False):
            return self._constants.setdefault(key, torch.tensor(numbers, dtype=dtype, device=device))

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_constants': {}}  # some may be on a GPU that the model has left

    def extra_repr(self) -> str:
        return f'degree={self.degree}'


class OrthogonalPolynomial(Polynomial):
    r""":math:`P_0=1,\dots,P_d` with :math:`P_{n+1}(x) = (a_n x + b_n) P_n(x) - c_n P_{n-1}(x)`.

    A family supplies :meth:`step`; evaluation and the change to monomials share one loop.
    """

    constant_first: ClassVar[bool] = True

    @property
    def steps(self) -> list[list[float]]:
        """All :meth:`step`, by coefficient: (3, degree)."""
        return [list(row) for row in zip(*(self.step(n) for n in range(self.degree)), strict=True)]

    def functions(self) -> Functions:
        steps = tuple(itertools.chain(*self.steps))
        return Functions('polynomial', self.degree, self._constant('steps', torch.float32, 'cpu'), steps=steps)

    @property
    def values_at_zero(self) -> list[list[float]]:
        """Of all functions, (1, degree + 1)."""
        return [[row[0] for row in self._monomials]]

    def at_zero(self, like: Tensor) -> Tensor:
        return as_type_of(as_constant(self._constant, 'values_at_zero', like.dtype, like.device), like)

    @abstractmethod
    def step(self, n: int) -> tuple[float, float, float]:
        r"""The coefficients :math:`a_n, b_n, c_n` that lead from degree `n` to `n + 1` (:math:`c_0` is not used)."""

    def evaluate(self, one, x) -> list:
        values = [one]
        for n in range(self.degree):
            a, b, c = self.step(n)
            following = (a * x + b) * values[n]
            values.append(following - c * values[n - 1] if n else following)
        return values


@BASES.register_module()
class Chebyshev(OrthogonalPolynomial):
    """Chebyshev polynomials, 2x T_n - T_{n-1}.

    Args:
        degree: highest degree, at least 1.
        kind: 1 for T_n, which begins with 1, x, or 2 for U_n, which begins with 1, 2x.

    Raises:
        ValueError: ``kind`` is neither.
    """

    def __init__(self, degree: int = 3, kind: int = 1) -> None:
        if kind not in (1, 2):
            raise ValueError(f'Chebyshev: kind must be 1 or 2, got {kind!r}')
        self.kind = kind  # first, as the parent's constructor runs the recurrence
        super().__init__(degree)

    def step(self, n: int) -> tuple[float, float, float]:
        return (2.0 if n else float(self.kind)), 0.0, 1.0

    def extra_repr(self) -> str:
        return super().extra_repr() + (', kind=2' if self.kind == 2 else '')


@BASES.register_module()
class Legendre(OrthogonalPolynomial):
    """Legendre polynomials, ((2n + 1) x P_n - n P_{n-1}) / (n + 1)."""

    def step(self, n: int) -> tuple[float, float, float]:
        return (2 * n + 1) / (n + 1), 0.0, n / (n + 1)


@BASES.register_module()
class Hermite(OrthogonalPolynomial):
    """Physicists' Hermite polynomials, 2x H_n - 2n H_{n-1}."""

    def step(self, n: int) -> tuple[float, float, float]:
        return 2.0, 0.0, 2.0 * n


@BASES.register_module()
class Jacobi(OrthogonalPolynomial):
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
        self.alpha, self.beta = alpha, beta
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


@BASES.register_module()
class Gegenbauer(OrthogonalPolynomial):
    r"""Gegenbauer (ultraspherical) polynomials :math:`C_n^{(\lambda)}` (DLMF 18.9.1).

    Args:
        degree: highest degree, at least 1.
        alpha: the parameter :math:`\lambda`, above -1/2 and not 0; 1/2 gives Legendre, 1 Chebyshev's second kind.

    Raises:
        ValueError: ``alpha`` is out of range.
    """

    def __init__(self, degree: int = 3, alpha: float = 1.5) -> None:
        if alpha <= -0.5 or alpha == 0:
            raise ValueError(f'Gegenbauer: alpha must be above -0.5 and not 0, got {alpha}')
        self.alpha = alpha
        super().__init__(degree)

    def step(self, n: int) -> tuple[float, float, float]:
        return 2 * (n + self.alpha) / (n + 1), 0.0, (n + 2 * self.alpha - 1) / (n + 1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}'


@BASES.register_module()
class Laguerre(OrthogonalPolynomial):
    r"""Generalised Laguerre polynomials :math:`L_n^{(\alpha)}` (DLMF 18.9.13).

    Args:
        degree: highest degree, at least 1.
        alpha: exponent of the weight :math:`x^\alpha e^{-x}`, above -1.

    Raises:
        ValueError: ``alpha`` is out of range.
    """

    def __init__(self, degree: int = 3, alpha: float = 0.0) -> None:
        if alpha <= -1:
            raise ValueError(f'Laguerre: alpha must be above -1, got {alpha}')
        self.alpha = alpha
        super().__init__(degree)

    def step(self, n: int) -> tuple[float, float, float]:
        return -1 / (n + 1), (2 * n + 1 + self.alpha) / (n + 1), (n + self.alpha) / (n + 1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}'


@BASES.register_module()
class Gram(OrthogonalPolynomial):
    r"""Gram (discrete Chebyshev) polynomials, monic and orthogonal on `m` points in the middles of `m` equal intervals.

    :math:`G_{n+1} = x G_n - \frac{n^2 (m^2 - n^2)}{m^2 (4 n^2 - 1)} G_{n-1}` on [-1, 1].

    Args:
        degree: highest degree, at least 1.
        points: `m`, more than ``degree``.

    Raises:
        ValueError: too few points.
    """

    def __init__(self, degree: int = 3, points: int = 16) -> None:
        if points <= degree:
            raise ValueError(f'Gram: polynomials up to degree {degree} need at least {degree + 1} points, got {points}')
        self.points = points
        super().__init__(degree)

    def step(self, n: int) -> tuple[float, float, float]:
        m = self.points
        return 1.0, 0.0, n**2 * (m**2 - n**2) / (m**2 * (4 * n**2 - 1))

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, points={self.points}'


@BASES.register_module()
class Bernstein(Polynomial):
    r"""Bernstein polynomials :math:`\binom{d}{j} s^j (1-s)^{d-j}` with :math:`s = (x + 1) / 2`, which sum to 1."""

    def evaluate(self, one, x) -> list:
        s = (x + 1) / 2
        rising, falling = [one], [one]
        for _ in range(self.degree):
            rising.append(rising[-1] * s)
            falling.append(falling[-1] * (1 - s))
        return [math.comb(self.degree, j) * rising[j] * falling[self.degree - j] for j in range(self.degree + 1)]
