"""Every element of a tensor to the values of its KAN functions, by Triton kernels: one read, one write.

All is computed in single precision, whatever the dtypes of input and output are.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .definition import expand_by_definition
from .functions import BASES, KINDS, Functions, example
from .triton_functions import (
    base_slope,
    base_value,
    bump,
    bump_slope,
    polynomial_slope_step,
    polynomial_step,
    spacing,
    tanh,
    widths,
)
from .triton_launch import Launch, cdiv, is_close, is_right, launch, power_of_2

ELEMENTS = 1024
"""Of a program."""
MAX_SIZE = 1 << 30  # values of a row, within which indices have 32 bits
Setting = tuple[str, bool, bool]
"""Name of the base function; whether u is tanh; whether the values at 0 are subtracted."""


def is_there(x: Tensor, functions: Functions, setting: Setting, dtype: torch.dtype) -> bool:
    """Whether the kernels are right on this GPU, in the variant for these arguments.

    ``x`` is (B, C, N) with a grid for each channel or for all, or (B, N) with one for each of N or for all.
    """
    if (functions.count + 1) * x.shape[-1] >= MAX_SIZE:
        return False
    dtypes = tuple(t.dtype for t in functions.arrays)
    return is_right(_agrees, x, x.dtype, x.dim(), functions.kind, functions.count, dtypes, functions.grids > 1,
                    functions.steps, setting, dtype, torch.is_grad_enabled())


def forward(x: Tensor, functions: Functions, setting: Setting, dtype: torch.dtype) -> Tensor:
    """(B, C, N) -> (B, C, P, N); (B, N) -> (B, P, N)."""
    x = x.contiguous()
    planes = functions.count + (setting[0] != 'none')
    y = torch.empty((*x.shape[:-1], planes, x.shape[-1]), dtype=dtype, device=x.device)
    _launch(_forward, x, functions, setting, y)
    return y


def backward(x: Tensor, functions: Functions, setting: Setting, grad: Tensor) -> Tensor:
    """The gradient of ``x``, given that of the output."""
    x = x.contiguous()
    result = torch.empty_like(x)
    _launch(_backward, x, functions, setting, grad.contiguous(), result)
    return result


def _launch(kernel: triton.JITFunction, x: Tensor, functions: Functions, setting: Setting, *others: Tensor) -> None:
    if x.numel():
        arrays = [t.contiguous() for t in functions.arrays]
        launch(_prepared(kernel, x.shape, functions.kind, functions.count, functions.knots, functions.steps,
                         functions.grids, setting), x, *(*arrays, x, x)[:2], *others)


@functools.lru_cache(maxsize=256)
def _prepared(kernel: triton.JITFunction, shape: torch.Size, kind: str, count: int, knots: int,
              steps: tuple[float, ...], grids: int, setting: Setting) -> Launch:
    """Made once: in Python it takes longer than the kernel on a small input."""
    (base, squash, centre), size = setting, shape[-1]
    columns, rows = min(ELEMENTS, power_of_2(size)), shape.numel() // size
    tile = dict(ROWS=ELEMENTS // columns, COLUMNS=columns)
    return Launch(kernel, (cdiv(rows, tile['ROWS']) * cdiv(size, columns),), (rows, size, grids), KIND=KINDS[kind],
                  FUNCTIONS=count, KNOTS=knots, STEPS=steps, BASE=BASES[base], SQUASH=squash, CENTRE=centre,
                  GRIDS=0 if grids == 1 else len(shape) - 1, **tile)


def _agrees(dtype: torch.dtype, dims: int, kind: str, count: int, dtypes: tuple[torch.dtype, ...], many: bool,
            steps: tuple[float, ...], setting: Setting, out: torch.dtype, training: bool, device: str = 'cuda') -> bool:
    """Whether a variant of the kernels gives what PyTorch gives in double precision, on a small input."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    x = random(*((3, 5, 37) if dims == 3 else (11, 37)), dtype=dtype)
    functions = example(kind, count, x.shape[1] if many else None, dtypes, steps, device)
    leaf = x.double().requires_grad_()
    expected = expand_by_definition(leaf, functions, *setting)
    results, rights = [forward(x, functions, setting, out)], [expected]
    if training:
        grad = random(*expected.shape, dtype=out)
        results.append(backward(x, functions, setting, grad))
        rights += torch.autograd.grad(expected, [leaf], grad.double())
    return all(is_close(*pair) for pair in zip(results, rights, strict=True))


@triton.jit
def _tile(size, grids, rows, GRIDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a program: its rows, columns and grids, broadcast to a tile, and which elements exist."""
    across = tl.cdiv(size, COLUMNS)
    row = (tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    there = (row < rows) & (column < size)
    if GRIDS == 0:
        grid = 0
    elif GRIDS == 1:
        grid = tl.where(column < size, column, 0)
    else:
        grid = row % grids
    return row, column, grid, there


@triton.jit
def _forward(x, points, inverse, y, rows, size, grids, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
             KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr, CENTRE: tl.constexpr,
             GRIDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, grid, there = _tile(size, grids, rows, GRIDS, ROWS, COLUMNS)
    v = tl.load(x + row * size + column, there, 0.0).to(tl.float32)
    u = tanh(v, False) if SQUASH else v
    place = y + row * ((FUNCTIONS + (BASE > 0)) * size) + column
    if BASE:
        tl.store(place, base_value(v, BASE).to(y.dtype.element_ty), there)
        place += size
    if KIND == 0:
        value, before, zero, zero_before = tl.zeros_like(u) + 1.0, tl.zeros_like(u), 1.0, 0.0
        for n in tl.static_range(FUNCTIONS):
            following = polynomial_step(u, value, before, n, STEPS, FUNCTIONS)
            zero_following = polynomial_step(0.0, zero, zero_before, n, STEPS, FUNCTIONS)
            before, value, zero_before, zero = value, following, zero, zero_following
            tl.store(place + n * size, (value - zero if CENTRE else value).to(y.dtype.element_ty), there)
    else:
        start, scale = spacing(points, inverse, grid, FUNCTIONS, KNOTS)
        for n in tl.range(FUNCTIONS, loop_unroll_factor=4):
            value = bump(widths(u, start, scale, points, grid, n, FUNCTIONS, KNOTS), KIND)
            if CENTRE:
                value -= bump(widths(start * 0.0, start, scale, points, grid, n, FUNCTIONS, KNOTS), KIND)
            tl.store(place + n * size, value.to(y.dtype.element_ty), there)


@triton.jit
def _backward(x, points, inverse, grad, grad_x, rows, size, grids, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
              KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr, CENTRE: tl.constexpr,
              GRIDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column, grid, there = _tile(size, grids, rows, GRIDS, ROWS, COLUMNS)
    v = tl.load(x + row * size + column, there, 0.0).to(tl.float32)
    u = tanh(v, False) if SQUASH else v
    place = grad + row * ((FUNCTIONS + (BASE > 0)) * size) + column
    of_base = tl.zeros_like(v)
    if BASE:
        of_base = tl.load(place, there, 0.0).to(tl.float32) * base_slope(v, BASE)
        place += size
    total = tl.zeros_like(v)
    if KIND == 0:
        value, before = tl.zeros_like(u) + 1.0, tl.zeros_like(u)
        slope, slope_before = tl.zeros_like(u), tl.zeros_like(u)
        for n in tl.static_range(FUNCTIONS):
            following = polynomial_step(u, value, before, n, STEPS, FUNCTIONS)
            slope_following = polynomial_slope_step(u, value, slope, slope_before, n, STEPS, FUNCTIONS)
            before, value, slope_before, slope = value, following, slope, slope_following
            total += tl.load(place + n * size, there, 0.0).to(tl.float32) * slope
    else:
        start, scale = spacing(points, inverse, grid, FUNCTIONS, KNOTS)
        for n in tl.range(FUNCTIONS, loop_unroll_factor=4):
            z = widths(u, start, scale, points, grid, n, FUNCTIONS, KNOTS)
            total += tl.load(place + n * size, there, 0.0).to(tl.float32) * bump_slope(z, KIND)
        total *= scale
    if SQUASH:
        total *= 1.0 - u * u
    tl.store(grad_x + row * size + column, (total + of_base).to(grad_x.dtype.element_ty), there)
