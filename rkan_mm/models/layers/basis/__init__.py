"""Bases of the functions in KAN layers: splines, windows, polynomials, Fourier and rational."""

from .base import Basis
from .bspline import BSpline
from .grid import GridBasis
from .other import Fourier, Rational
from .polynomial import (
    Bernstein,
    Chebyshev,
    Gegenbauer,
    Gram,
    Hermite,
    Jacobi,
    Laguerre,
    Legendre,
    OrthogonalPolynomial,
    Polynomial,
)
from .window import RSWAF, GaussianRBF, ReLUKAN, Wavelet, Window

__all__ = [
    'RSWAF', 'BSpline', 'Basis', 'Bernstein', 'Chebyshev', 'Fourier', 'GaussianRBF', 'Gegenbauer', 'Gram', 'GridBasis',
    'Hermite', 'Jacobi', 'Laguerre', 'Legendre', 'OrthogonalPolynomial', 'Polynomial', 'Rational', 'ReLUKAN', 'Wavelet',
    'Window',
]
