from .base import Basis
from .grid import RSWAF, BSpline, GaussianRBF, GridBasis, ReLUKAN, Wavelet, Window
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

__all__ = [
    'RSWAF', 'BSpline', 'Basis', 'Bernstein', 'Chebyshev', 'Fourier', 'GaussianRBF', 'Gegenbauer', 'Gram', 'GridBasis',
    'Hermite', 'Jacobi', 'Laguerre', 'Legendre', 'OrthogonalPolynomial', 'Polynomial', 'Rational', 'ReLUKAN', 'Wavelet',
    'Window',
]
