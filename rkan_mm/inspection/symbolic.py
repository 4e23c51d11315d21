"""Symbolic fits: simple formulas for functions, what they cost in the metric, and putting them into a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rkan_mm.models.layers.locked import FORMS, Fixed, lock

from .functions import Index
from .missing import require
from .statistics import Statistics
from .swap import replaced

POINTS, COARSE = 2000, 400
"""Inputs of a function that are fitted, and for the first search."""
SCALES, PLACES = 16, 17
KEPT = 4
"""Starting points that are refined."""
TOLERANCE = 1e-3


@dataclass
class Fit(Fixed):
    """A form fitted to a function over its inputs.

    Args:
        r2: part of the function's variance, over all inputs that were given, that the formula explains.
    """

    r2: float = 0.0

    @property
    def complexity(self) -> int:
        return FORMS[self.form].complexity

    def text(self) -> str:
        """E.g. ``0.5 sin(2 x + 0.1) - 1``."""
        a, b, c, d = self.constants
        if self.form == 'constant':
            return f'{d:.4g}'
        if self.form == 'x':
            return f'{a * b:.4g} x {a * c + d:+.4g}'
        name = {'x^2': '({})^2', 'x^3': '({})^3', '|x|': '|{}|', 'gaussian': 'exp(-({})^2)',
                'lorentzian': '1 / (1 + ({})^2)', 'log': 'log(1 + |{}|)', 'sqrt': 'sqrt(|{}|)'}.get(
                    self.form, f'{self.form}({{}})')
        return f'{a:.4g} {name.format(f"{b:.4g} x {c:+.4g}")} {d:+.4g}'


def fit_forms(x: Tensor | np.ndarray, y: Tensor | np.ndarray, forms: Sequence[str] | None = None,
              seed: int = 0) -> list[Fit]:
    """Fit every form ``a f(b x + c) + d`` by least squares: a search over b and c, then scipy; a and d follow.

    Args:
        x: inputs as the function really has them, (N,): where it has many it must fit well. Inf and NaN are left out.
        y: its values.
        forms: names of forms; None for all of the table.
        seed: for drawing inputs where there are many.

    Returns:
        From the simplest to the most complex.

    Raises:
        ValueError: there are fewer than four inputs.
        PreflightError: scipy is missing.

    Example:
        >>> x = torch.linspace(-2, 2, 500)
        >>> best(fit_forms(x, 3 * torch.sin(2 * x))).form
        'sin'
    """
    x, y = (np.asarray(torch.as_tensor(t).detach().cpu(), dtype=np.float64) for t in (x, y))
    finite = np.isfinite(x) & np.isfinite(y)  # a bad picture, or half precision, brings others
    x, y = x[finite], y[finite]
    if len(x) < 4:
        raise ValueError(f'fit_forms: at least four inputs are needed, got {len(x)}')
    some = np.random.default_rng(seed).choice(len(x), POINTS, replace=False) if len(x) > POINTS else slice(None)
    variance, fits = y.var(), []
    for form in forms or FORMS:
        if form == 'constant' or y[some].var() <= 1e-20 * max(1.0, np.square(y).mean()):
            constants = (0.0, 1.0, 0.0, float(y.mean()))
        else:
            constants = _fit(form, x[some], y[some])
        fits.append(Fit(form, constants, _r2(Fixed(form, constants), x, y, variance)))
    return sorted(fits, key=lambda fit: (fit.complexity, -fit.r2))


def best(fits: Sequence[Fit], tolerance: float = TOLERANCE) -> Fit:
    """The simplest form whose r2 is within a tolerance of the best one's."""
    limit = max(fit.r2 for fit in fits) - tolerance
    return next(fit for fit in sorted(fits, key=lambda fit: (fit.complexity, -fit.r2)) if fit.r2 >= limit)


def _value(form: str, z: np.ndarray) -> np.ndarray:
    return FORMS[form].function(torch.from_numpy(z)).numpy()


def _r2(fixed: Fixed, x: np.ndarray, y: np.ndarray, variance: float) -> float:
    left = np.square(fixed(torch.from_numpy(x)).numpy() - y).mean()
    return float(1 - left / variance) if variance > 0 else float(left <= 1e-20)


def _outer(form: str, b: float, c: float, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The constants a and d, by linear regression."""
    value = _value(form, b * x + c)
    spread = value - value.mean()
    square = spread @ spread
    a = float(spread @ y / square) if square > 1e-24 else 0.0
    return a, float(y.mean() - a * value.mean())


def _fit(form: str, x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    if form == 'x':
        a, d = _outer(form, 1.0, 0.0, x, y)
        return a, 1.0, 0.0, d
    low, high = x.min(), x.max()
    width = max(high - low, 1e-12)
    scales = np.geomspace(0.5, 40, SCALES) / width
    places = np.linspace(low - 0.25 * width, high + 0.25 * width, PLACES)
    b = np.concatenate([scales, -scales])[:, None].repeat(PLACES, 1).ravel()
    c = -b * np.tile(places, 2 * SCALES)
    chosen = np.linspace(0, len(x) - 1, min(COARSE, len(x))).astype(int)
    order = np.argsort(x)[chosen] if len(x) > COARSE else np.arange(len(x))
    values = _value(form, b[:, None] * x[order] + c[:, None])  # (G, n)
    values = values - values.mean(1, keepdims=True)
    target = y[order] - y[order].mean()
    square = np.square(values).sum(1)
    explained = np.where(square > 1e-24, np.square(values @ target) / np.maximum(square, 1e-24), 0.0)

    def left(parameters: np.ndarray) -> np.ndarray:
        a, d = _outer(form, parameters[0], parameters[1], x, y)
        return a * _value(form, parameters[0] * x + parameters[1]) + d - y

    solver = require('scipy.optimize', 'A symbolic fit').least_squares
    results = [solver(left, (b[i], c[i]), x_scale=(abs(b[i]), max(abs(c[i]), 1.0)), max_nfev=60)
               for i in np.argsort(-explained)[:KEPT]]
    inner = min(results, key=lambda result: result.cost).x
    a, d = _outer(form, inner[0], inner[1], x, y)
    return a, float(inner[0]), float(inner[1]), d


def fit_layer(statistics: Statistics, indices: Sequence[Index]) -> dict[Index, list[Fit]]:
    """Fit forms to functions of a layer over their kept inputs.

    Args:
        statistics: of the layer; the inputs of these functions must be kept.
        indices: of functions.

    Raises:
        ValueError: the functions have two arguments.
    """
    functions = statistics.functions
    if functions.two_arguments:
        raise ValueError(f'{functions.name or type(functions.layer).__name__}: its functions take x and what its '
                         f'normalization {functions.normalization!r} makes of it; no formula of x can stand for them')
    found = {}
    for index in indices:
        x, _ = statistics.samples(index)
        found[index] = fit_forms(x, functions.curve(index, x))
    return found


@contextmanager
def substituted(formulas: Mapping[nn.Module, Mapping[Index, Fixed]]) -> Iterator[None]:
    """Meanwhile formulas stand in the place of functions; the layers themselves are not touched.

    Args:
        formulas: by layer, by index.
    """
    with ExitStack() as stack:
        for layer, own in formulas.items():
            stand_in = copy.deepcopy(layer)
            lock(stand_in, own)
            stack.enter_context(replaced(layer, stand_in))
        yield
