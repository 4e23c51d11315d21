"""Formulas of KAN layers: what their functions are, exactly, as text, LaTeX, sympy and NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from torch import nn

from rkan_mm.models.layers.shared_kan_conv import PATCHWISE

from .closed_forms import ACTIVATIONS, BASES, closed_form, fixed_form
from .functions import Index, LayerFunctions
from .mathml import mathml
from .missing import require

MAX_FUNCTIONS = 4096
SEEN = {
    'min-max': '2 (x - min) / (max - min + 1e-8) - 1 over the taps of a patch',
    'standardization': '(x - mean) / (standard deviation + 1e-8) over the taps of a patch',
    'arctan': '2 / pi arctan(a (x - mean)), mean over the taps of a patch',
    'layer_norm': 'a layer norm over the taps of a patch',
}
assert set(SEEN) == set(PATCHWISE)


class Formula:
    """One function of a KAN layer in closed form.

    Args:
        expression: of sympy.
        symbols: its arguments, x, or x and u, see `LayerFunctions`.
        label: what it is called.
    """

    def __init__(self, expression, symbols: tuple, label: str) -> None:
        self.expression, self.symbols, self.label = expression, symbols, label

    def sympy(self):
        """The expression itself."""
        return self.expression

    def text(self, digits: int | None = None) -> str:
        """Plain text; with ``digits`` all numbers are rounded to so many significant ones."""
        return str(self._rounded(digits))

    def latex(self, digits: int | None = None) -> str:
        """LaTeX, without dollars."""
        return require('sympy', 'A formula').latex(self._rounded(digits))

    def mathml(self, digits: int | None = 4) -> str:
        """MathML, which browsers show as a formula."""
        return mathml(self._rounded(digits))

    def source(self, name: str = 'phi') -> str:
        """Python source of a NumPy function; it also takes arrays. Every number has all its digits."""
        printer = require('sympy.printing.numpy', 'A formula').SciPyPrinter(
            {'full_prec': True, 'fully_qualified_modules': True})
        body = printer.doprint(self.expression)
        arguments = ', '.join(map(str, self.symbols))
        imports = ''.join(f'import {module}\n' for module in sorted(printer.module_imports))
        return f'{imports}\n\ndef {name}({arguments}):\n    return {body}\n'

    @cached_property
    def _compiled(self) -> Callable:
        return require('sympy', 'A formula').lambdify(self.symbols, self.expression, ['numpy', 'scipy'], cse=True)

    def __call__(self, *arguments: np.ndarray) -> np.ndarray:
        """Evaluate at float64 arrays.

        Raises:
            TypeError: not as many arguments as the function has.
        """
        if len(arguments) != len(self.symbols):
            raise TypeError(f'{self.label}: takes {", ".join(map(str, self.symbols))}, got {len(arguments)} arguments')
        values = [np.asarray(argument, dtype=np.float64) for argument in arguments]
        with np.errstate(over='ignore'):
            return np.broadcast_to(np.asarray(self._compiled(*values), dtype=np.float64), values[0].shape).copy()

    def _rounded(self, digits: int | None):
        if digits is None:
            return self.expression
        sympy = require('sympy', 'A formula')
        return self.expression.xreplace({number: sympy.Float(number, digits)
                                         for number in self.expression.atoms(sympy.Float)})

    def __str__(self) -> str:
        return f'{self.label} = {self.text(4)}'


class LayerFormula:
    r"""All or some functions of a KAN layer, and its constant.

    An output is the sum of the functions of its taps (and, but with a shared kernel, of its input channels) plus the
    constant, into which the constants of these functions are folded. In a transposed convolution, whose outputs differ
    in how many inputs reach them, they stay in the functions.

    Args:
        functions: formula by index, see `LayerFunctions`.
        constant: one number with a shared kernel, else one for each output: the bias, and what left the functions.
        argument: what u is, in words; None where there is no u.
    """

    def __init__(self, functions: dict[Index, Formula], constant: float | np.ndarray, argument: str | None) -> None:
        self.functions, self.constant, self.argument = functions, constant, argument

    def __getitem__(self, index: Index) -> Formula:
        return self.functions[index]

    def __iter__(self):
        return iter(self.functions.items())

    def __len__(self) -> int:
        return len(self.functions)

    def __str__(self) -> str:
        lines = [str(function) for function in self.functions.values()]
        constant = np.asarray(self.constant)
        lines.append(f'constant = {constant:.4g}' if not constant.ndim else
                     f'constants = {np.array2string(constant, precision=4, threshold=16)}')
        return '\n'.join(lines if self.argument is None else [*lines, f'u = {self.argument}'])


def formula(layer: nn.Module, indices: Sequence[Index] | None = None, fold: bool = True) -> LayerFormula:
    r"""The functions of a KAN layer as formulas: exact, not fitted. Needs the extra ``rkan_mm[inspect]``.

    With a polynomial basis they are a polynomial in tanh(x) and a linear term; splines are a polynomial for each
    interval. The layer is not changed.

    Args:
        layer: SharedKANConv2d, KANConv* or KANLinear, on any basis of the package.
        indices: of the functions, e.g. (out, in, row, column); None for all.
        fold: whether constants leave the functions for the layer's one constant.

    Returns:
        Formulas by index, with the layer's constant.

    Raises:
        TypeError: not a KAN layer.
        ValueError: no closed form is known, or all of more than 4096 functions were asked for.
        PreflightError: sympy or, for splines, scipy is missing.

    Example:
        >>> conv = SharedKANConv2d(3, basis=dict(type='Chebyshev', degree=3))
        >>> found = formula(conv)
        >>> print(found[0, 0].text(3))  # numbers as drawn at random
        0.214*x + 0.0493*tanh(x)**3 - 0.143*tanh(x)**2 - 0.31*tanh(x)
    """
    functions = LayerFunctions(layer)
    sympy = require('sympy', 'A formula')
    everything = functions.indices() if indices is None else list(indices)
    if indices is None and len(functions) > MAX_FUNCTIONS:
        raise ValueError(f'formula: {type(layer).__name__} has {len(functions)} functions; choose some by indices')
    x, u = sympy.Symbol('x', real=True), sympy.Symbol('u', real=True)
    two = functions.two_arguments
    argument = u if two else sympy.tanh(x) if functions.normalization == 'tanh' else x
    who = f'formula: {type(layer).__name__}'
    form = closed_form(BASES, functions.basis, who)
    base_of = u if two and getattr(layer, 'normalize_base', False) else x
    base = base_of if layer.base_act is None else closed_form(ACTIVATIONS, layer.base_act, who)(layer.base_act, base_of)
    constants = _constants(functions)
    fold = fold and not getattr(layer, 'transposed', False)
    found = {}
    for index in everything:
        coefficients = functions.coefficients[index].numpy()
        row = functions.row(index) if getattr(functions.basis, 'rows', 1) > 1 else 0
        expression = form(functions.basis, coefficients, row, argument)
        if functions.base is not None:
            expression = float(functions.base[index]) * base + expression
        if index in functions.locked:
            expression = expression + fixed_form(functions.locked[index], x)
        expression = sympy.sympify(expression)
        if fold:
            constant, expression = expression.as_coeff_Add()
            constants[functions.output(index)] += float(constant)
        found[index] = Formula(expression, (x, u) if two else (x,), f'phi[{", ".join(map(str, index))}]')
    return LayerFormula(found, constants[0] if functions.shared else constants, _argument(layer) if two else None)


def _constants(functions: LayerFunctions) -> np.ndarray:
    """The layer's bias, (outputs,)."""
    layer = functions.layer
    outputs = 1 if functions.shared else getattr(layer, 'out_channels', None) or layer.out_features
    bias = np.zeros(outputs) if layer.bias is None else layer.bias.detach().double().cpu().numpy()
    return np.array(bias, dtype=np.float64).reshape(outputs)


def _argument(layer: nn.Module) -> str:
    if not isinstance(layer.normalization, dict):
        return SEEN[layer.normalization]
    return f'x behind the norm layer {layer.norm}'
