"""Closed forms, in sympy, of the package's bases and of the activations of base branches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import nn

from rkan_mm.models.layers import basis as bases

from .missing import require


def _sympy():
    return require('sympy', 'A formula')


def _powers(coefficients: np.ndarray, t):
    """Sum of c_n t^n, without terms that are 0."""
    return _sympy().Add(*[float(c) * t**n for n, c in enumerate(coefficients) if c])


def _polynomial(basis: bases.Polynomial, coefficients: np.ndarray, row: int, u):
    total = np.zeros(basis.num_functions)
    for c, monomials in zip(coefficients, basis._monomials, strict=True):
        total[:len(monomials)] += c * np.asarray(monomials)
    return _powers(total, u)


def _bspline(basis: bases.BSpline, coefficients: np.ndarray, row: int, u):
    """One polynomial for each interval of the knots, in powers of the distance from its lower end."""
    if not coefficients.any():
        return 0
    interpolate, sympy = require('scipy.interpolate', 'The formula of a B-spline'), _sympy()
    k, knots = basis.order, basis.grid[row].double().numpy()
    # the outermost intervals lie outside of what scipy calls the base interval: knots far away make them inside
    beyond = (knots[-1] - knots[0]) * np.arange(1, k + 1)
    wide = np.concatenate([knots[0] - beyond[::-1], knots, knots[-1] + beyond])
    spline = interpolate.BSpline(wide, np.concatenate([np.zeros(k), coefficients, np.zeros(k)]), k)
    pieces = interpolate.PPoly.from_spline(spline)
    branches = [(0, u < float(knots[0]))]
    for low, high, powers in zip(pieces.x[:-1], pieces.x[1:], pieces.c.T, strict=True):
        if low >= knots[0] and high <= knots[-1] and high > low:
            branches.append((_powers(powers[::-1], u - float(low)), u < float(high)))
    return sympy.Piecewise(*branches, (0, True), evaluate=False)


def _window(shape: Callable) -> Callable:
    def form(basis: bases.Window, coefficients: np.ndarray, row: int, u):
        grid, inverse = basis.grid.detach().double().numpy()[row], basis.inv_width[row].item()
        return _sympy().Add(*[float(c) * shape(basis, (u - float(point)) * inverse)
                              for c, point in zip(coefficients, grid, strict=True) if c])
    return form


def _wavelet(basis: bases.Wavelet, z):
    sympy = _sympy()
    decay = sympy.exp(-z**2 / 2)
    return dict(mexican_hat=lambda: 2 / (math.sqrt(3) * math.pi**0.25) * (1 - z**2) * decay,
                morlet=lambda: sympy.cos(5 * z) * decay, dog=lambda: -z * decay)[basis.wavelet]()


def _fourier(basis: bases.Fourier, coefficients: np.ndarray, row: int, u):
    sympy, n = _sympy(), basis.num_frequencies
    frequency = [2 * math.pi * i / basis.period for i in range(1, n + 1)]
    return sympy.Add(*[float(c) * wave(frequency[i] * u) for wave, part in
                       ((sympy.cos, coefficients[:n]), (sympy.sin, coefficients[n:]))
                       for i, c in enumerate(part) if c])


def _rational(basis: bases.Rational, coefficients: np.ndarray, row: int, u):
    q = basis.denominator.detach().double().numpy()
    return _powers(coefficients, u) / (1 + _sympy().Abs(_powers(np.concatenate([[0.0], q]), u)))


BASES: dict[type, Callable] = {
    bases.Polynomial: _polynomial,
    bases.BSpline: _bspline,
    bases.GaussianRBF: _window(lambda basis, z: _sympy().exp(-z**2)),
    bases.RSWAF: _window(lambda basis, z: 1 - _sympy().tanh(z)**2),
    bases.ReLUKAN: _window(lambda basis, z: _sympy().Max(0, 1 - z**2)**2),
    bases.Wavelet: _window(_wavelet),
    bases.Fourier: _fourier,
    bases.Rational: _rational,
}
"""From (basis, coefficients (F,), row of its grid, argument) to an expression."""

ACTIVATIONS: dict[type, Callable] = {
    nn.Identity: lambda act, x: x,
    nn.SiLU: lambda act, x: x / (1 + _sympy().exp(-x)),
    nn.ReLU: lambda act, x: _sympy().Max(0, x),
    nn.ReLU6: lambda act, x: _sympy().Min(6, _sympy().Max(0, x)),
    nn.LeakyReLU: lambda act, x: _sympy().Max(0, x) + act.negative_slope * _sympy().Min(0, x),
    nn.Tanh: lambda act, x: _sympy().tanh(x),
    nn.Sigmoid: lambda act, x: 1 / (1 + _sympy().exp(-x)),
    nn.GELU: lambda act, x: _gelu(act, x),
    nn.ELU: lambda act, x: _sympy().Max(0, x) + act.alpha * (_sympy().exp(_sympy().Min(0, x)) - 1),
    nn.Softplus: lambda act, x: _sympy().Piecewise(
        (x, act.beta * x > act.threshold), (_sympy().log(1 + _sympy().exp(act.beta * x)) / act.beta, True)),
    nn.Hardtanh: lambda act, x: _sympy().Min(act.max_val, _sympy().Max(act.min_val, x)),
    nn.Hardswish: lambda act, x: x * _sympy().Min(6, _sympy().Max(0, x + 3)) / 6,
}
"""From (activation, argument) to an expression."""


COMPUTES = ('forward', 'window', '_cardinal', '_cox_de_boor')
"""Methods by which a subclass computes something else."""


def _gelu(act: nn.GELU, x):
    sympy = _sympy()
    if act.approximate == 'tanh':
        return x / 2 * (1 + sympy.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + sympy.erf(x / math.sqrt(2)))


def closed_form(table: dict[type, Callable], thing: nn.Module, who: str) -> Callable:
    """The row of a table for the class of ``thing``, or the nearest one that it comes from and computes as.

    Raises:
        ValueError: there is none.
    """
    for kind in type(thing).__mro__:
        if kind in table and all(getattr(type(thing), name, None) is getattr(kind, name, None) for name in COMPUTES):
            return table[kind]
    what = 'basis' if table is BASES else 'activation'
    raise ValueError(f'{who}: no closed form is known of {what} {type(thing).__name__}; known are '
                     f'{", ".join(kind.__name__ for kind in table)}')


def fixed_form(fixed, x):
    """Expression of a function that is locked to a form of `rkan_mm.models.layers.locked`."""
    sympy = _sympy()
    a, b, c, d = fixed.constants
    z = b * x + c
    outer = {
        'constant': lambda: sympy.Integer(0), 'x': lambda: z, 'x^2': lambda: z**2, 'x^3': lambda: z**3,
        '|x|': lambda: sympy.Abs(z), 'relu': lambda: sympy.Max(0, z), 'sin': lambda: sympy.sin(z),
        'exp': lambda: sympy.exp(sympy.Min(30, z)), 'tanh': lambda: sympy.tanh(z), 'arctan': lambda: sympy.atan(z),
        'gaussian': lambda: sympy.exp(-z**2), 'lorentzian': lambda: 1 / (1 + z**2),
        'softplus': lambda: sympy.log(1 + sympy.exp(z)), 'silu': lambda: z / (1 + sympy.exp(-z)),
        'log': lambda: sympy.log(1 + sympy.Abs(z)), 'sqrt': lambda: sympy.sqrt(sympy.Abs(z) + 1e-12),
    }[fixed.form]()
    return a * outer + d
