"""Every element of a tensor to the values of its KAN functions, by Triton kernels: one read, one write.

All is computed in single precision, whatever the dtypes of input and output are.
"""

from __future__ import annotations

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
    tanh,
    widths,
)
from .triton_launch import is_close, is_right, launch

VALUES = 1024
"""That a program computes at a time, where functions come last; elsewhere half as many for each function."""
MAX_SIZE = 1 << 30  # values of a row, within which indices have 32 bits
Setting = tuple[str, bool, bool, bool]
"""Name of the base function; whether u is tanh; whether the values at 0 are subtracted; whether functions come last."""


def is_there(x: Tensor, functions: Functions, setting: Setting, dtype: torch.dtype) -> bool:
    """Whether the kernels are right on this GPU, in the variant for these arguments.

    ``x`` is (B, C, N) with a grid for each channel or for all, or (B, N) with one for each of N or for all.
    """
    if (functions.count + 1) * x.shape[-1] >= MAX_SIZE:
        return False
    dtypes = tuple(t.dtype for t in functions.arrays)
    return is_right(_agrees, x.dtype, x.dim(), functions.kind, functions.count, dtypes, functions.grids > 1,
                    functions.steps, setting, dtype, torch.is_grad_enabled())


def forward(x: Tensor, functions: Functions, setting: Setting, dtype: torch.dtype) -> Tensor:
    """(B, C, N) -> (B, C, P, N); (B, N) -> (B, P, N), or (B, N, P) where functions come last."""
    x = x.contiguous()
    planes = functions.count + (setting[0] != 'none')
    shape = (*x.shape, planes) if setting[3] else (*x.shape[:-1], planes, x.shape[-1])
    y = torch.empty(shape, dtype=dtype, device=x.device)
    _launch(_forward, x, functions, setting, y)
    return y


def backward(x: Tensor, functions: Functions, setting: Setting, grad: Tensor) -> Tensor:
    """The gradient of ``x``, given that of the output."""
    x = x.contiguous()
    result = torch.empty_like(x)
    _launch(_backward, x, functions, setting, grad.contiguous(), result)
    return result


def _launch(kernel: triton.JITFunction, x: Tensor, functions: Functions, setting: Setting, *others: Tensor) -> None:
    if not x.numel():
        return
    base, squash, centre, last = setting
    count, arrays = functions.count, [t.contiguous() for t in functions.arrays]
    padded = triton.next_power_of_2(count + (base != 'none'))
    block = max(16, VALUES // padded) if last else VALUES // 2
    launch(kernel, (triton.cdiv(x.numel(), block),), x, *(*arrays, x, x)[:2], *others, x.numel(), x.shape[-1],
           functions.grids, KIND=KINDS[functions.kind], FUNCTIONS=count, KNOTS=functions.knots, STEPS=functions.steps,
           BASE=BASES[base], SQUASH=squash, CENTRE=centre, LAST=last,
           GRIDS=0 if functions.grids == 1 else x.dim() - 1, BLOCK=block, PADDED=padded)


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
def _places(count, size, grids, GRIDS: tl.constexpr, BLOCK: tl.constexpr):
    """Of a program's elements: number of the first; the first row; rows after it, column, grid and existence."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first = start // size
    index = (start - first * size).to(tl.int32) + tl.arange(0, BLOCK)
    row = index // size
    column = index - row * size
    if GRIDS == 0:
        grid = tl.zeros((BLOCK,), tl.int32)
    elif GRIDS == 1:
        grid = column
    else:
        grid = ((first % grids).to(tl.int32) + row) % grids
    return start, first, row, column, grid, start + tl.arange(0, BLOCK) < count


@triton.jit
def _forward(x, points, inverse, y, count, size, grids, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
             KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr, CENTRE: tl.constexpr,
             LAST: tl.constexpr, GRIDS: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr):
    start, first, row, column, grid, there = _places(count, size, grids, GRIDS, BLOCK)
    v = tl.load(x + start + tl.arange(0, BLOCK), there, 0.0).to(tl.float32)
    u = tanh(v, False) if SQUASH else v
    planes: tl.constexpr = FUNCTIONS + (BASE > 0)
    if LAST:
        plane = tl.arange(0, PADDED)[None, :]
        f = plane - (BASE > 0)
        if KIND == 0:
            values = tl.zeros((BLOCK, PADDED), tl.float32)
            value, before, zero, zero_before = tl.zeros_like(u) + 1.0, tl.zeros_like(u), 1.0, 0.0
            for n in tl.static_range(FUNCTIONS):
                following = polynomial_step(u, value, before, n, STEPS, FUNCTIONS)
                zero_following = polynomial_step(0.0, zero, zero_before, n, STEPS, FUNCTIONS)
                before, value, zero_before, zero = value, following, zero, zero_following
                values = tl.where(f == n, (value - zero if CENTRE else value)[:, None], values)
        else:
            known = (f >= 0) & (f < FUNCTIONS)
            values = bump(widths(u[:, None], points, inverse, grid[:, None], f, known, FUNCTIONS, KNOTS)[0], KIND)
            if CENTRE:
                values -= bump(widths(0.0 * f, points, inverse, grid[:, None], f, known, FUNCTIONS, KNOTS)[0], KIND)
        if BASE:
            values = tl.where(plane == 0, base_value(v, BASE)[:, None], values)
        place = y + start * planes + tl.arange(0, BLOCK)[:, None] * planes + plane
        tl.store(place, values.to(y.dtype.element_ty), there[:, None] & (plane < planes))
    else:
        place = y + first * planes * size + row * planes * size + column
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
            for n in tl.range(FUNCTIONS, loop_unroll_factor=4):
                value = bump(widths(u, points, inverse, grid, n, there, FUNCTIONS, KNOTS)[0], KIND)
                if CENTRE:
                    value -= bump(widths(tl.zeros_like(u), points, inverse, grid, n, there, FUNCTIONS, KNOTS)[0], KIND)
                tl.store(place + n * size, value.to(y.dtype.element_ty), there)


@triton.jit
def _backward(x, points, inverse, grad, grad_x, count, size, grids, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
              KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr, CENTRE: tl.constexpr,
              LAST: tl.constexpr, GRIDS: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr):
    start, first, row, column, grid, there = _places(count, size, grids, GRIDS, BLOCK)
    v = tl.load(x + start + tl.arange(0, BLOCK), there, 0.0).to(tl.float32)
    u = tanh(v, False) if SQUASH else v
    planes: tl.constexpr = FUNCTIONS + (BASE > 0)
    if LAST:
        place = grad + start * planes + tl.arange(0, BLOCK) * planes
        step = 1
    else:
        place = grad + first * planes * size + row * planes * size + column
        step = size
    of_base = tl.zeros((BLOCK,), tl.float32)
    if BASE:
        of_base = tl.load(place, there, 0.0).to(tl.float32) * base_slope(v, BASE)
        place += step
    total = tl.zeros((BLOCK,), tl.float32)
    if KIND == 0:
        value, before = tl.zeros_like(u) + 1.0, tl.zeros_like(u)
        slope, slope_before = tl.zeros_like(u), tl.zeros_like(u)
        for n in tl.static_range(FUNCTIONS):
            following = polynomial_step(u, value, before, n, STEPS, FUNCTIONS)
            slope_following = polynomial_slope_step(u, value, slope, slope_before, n, STEPS, FUNCTIONS)
            before, value, slope_before, slope = value, following, slope, slope_following
            total += tl.load(place + n * step, there, 0.0).to(tl.float32) * slope
    elif LAST:
        f = tl.arange(0, PADDED)[None, :]
        known = there[:, None] & (f < FUNCTIONS)
        z, scale = widths(u[:, None], points, inverse, grid[:, None], f, f < FUNCTIONS, FUNCTIONS, KNOTS)
        g = tl.load(place[:, None] + f, known, 0.0).to(tl.float32)
        total = tl.sum(g * bump_slope(z, KIND) * scale, 1)
    else:
        for n in tl.range(FUNCTIONS, loop_unroll_factor=4):
            z, scale = widths(u, points, inverse, grid, n, there, FUNCTIONS, KNOTS)
            total += tl.load(place + n * size, there, 0.0).to(tl.float32) * bump_slope(z, KIND) * scale
    if SQUASH:
        total *= 1.0 - u * u
    tl.store(grad_x + start + tl.arange(0, BLOCK), (total + of_base).to(grad_x.dtype.element_ty), there)
