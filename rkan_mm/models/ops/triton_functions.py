"""Functions of one variable in Triton, which the kernels of this package share: `csrc/expand.cpp` has the same ones."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x, HARDWARE: tl.constexpr):
    """With a relative error below 3e-7, also near zero; by the GPU's own instruction below 5e-4, as half precision."""
    if HARDWARE:
        return tl.inline_asm_elementwise('tanh.approx.f32 $0, $1;', '=f,f', [x], dtype=tl.float32, is_pure=True, pack=1)
    u = x * x
    near = ((-0.00661056002254598 * u + 0.021277505801911456) * u - 0.053895319809910344) * u + 0.13332935866132184
    near = x + x * u * (near * u - 0.3333332624744682)
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0, -far, far))


@triton.jit
def base_value(x, BASE: tl.constexpr):
    """Of the base branch: 1 is x itself, 2 SiLU."""
    return x if BASE == 1 else x / (1.0 + tl.exp(-x))


@triton.jit
def base_slope(x, BASE: tl.constexpr):
    if BASE == 1:
        return tl.zeros_like(x) + 1.0
    s = 1.0 / (1.0 + tl.exp(-x))
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def positive(x):
    """NaN stays NaN."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def bump(z, KIND: tl.constexpr):
    """A function around a point, `z` widths from it: 1 to 3 splines of that order, 4 Gaussian, 5 switch 1 - tanh^2."""
    if KIND == 4:
        value = tl.exp(-z * z)
    elif KIND == 5:
        e = tl.exp(-2.0 * tl.abs(z))
        value = 4.0 * e / ((1.0 + e) * (1.0 + e))
    else:
        outer, inner = positive((KIND + 1) * 0.5 - tl.abs(z)), positive((KIND - 1) * 0.5 - tl.abs(z))
        if KIND == 1:
            value = outer
        elif KIND == 2:
            value = 0.5 * outer * outer - 1.5 * inner * inner
        else:
            value = outer * outer * outer * (1.0 / 6) - inner * inner * inner * (2.0 / 3)
    return value


@triton.jit
def bump_slope(z, KIND: tl.constexpr):
    """The derivative of `bump` with respect to z."""
    if KIND == 4:
        near = tl.where(tl.abs(z) > 30.0, 0.0, z)  # so that infinite ones give 0
        slope = -2.0 * near * tl.exp(-near * near)
        slope = tl.where(tl.abs(z) > 30.0, 0.0, slope)
    elif KIND == 5:
        e = tl.exp(-2.0 * tl.abs(z))
        slope = 8.0 * e * (1.0 - e) / ((1.0 + e) * (1.0 + e) * (1.0 + e))
        slope = tl.where(z < 0, slope, -slope)
    else:
        outer, inner = positive((KIND + 1) * 0.5 - tl.abs(z)), positive((KIND - 1) * 0.5 - tl.abs(z))
        if KIND == 1:
            fall = tl.where(outer > 0.0, tl.where(z == 0.0, 0.0, 1.0), outer)
        elif KIND == 2:
            fall = outer - 3.0 * inner
        else:
            fall = 0.5 * outer * outer - 2.0 * inner * inner
        slope = tl.where(z < 0, fall, -fall)
    return slope


@triton.jit
def polynomial_step(u, value, before, N: tl.constexpr, STEPS: tl.constexpr, FUNCTIONS: tl.constexpr):
    """From P_n and P_{n-1} to P_{n+1} = (a u + b) P_n - c P_{n-1}; `STEPS` are all a, then all b, then all c."""
    following = (STEPS[N] * u + STEPS[FUNCTIONS + N]) * value
    return following - STEPS[2 * FUNCTIONS + N] * before if N > 0 else following


@triton.jit
def polynomial_slope_step(u, value, slope, slope_before, N: tl.constexpr, STEPS: tl.constexpr,
                          FUNCTIONS: tl.constexpr):
    """From the derivatives of P_n and P_{n-1} to that of P_{n+1}."""
    following = (STEPS[N] * u + STEPS[FUNCTIONS + N]) * slope + STEPS[N] * value
    return following - STEPS[2 * FUNCTIONS + N] * slope_before if N > 0 else following


@triton.jit
def spacing(points, inverse, grid, FUNCTIONS: tl.constexpr, KNOTS: tl.constexpr):
    """Of grids, which may be a block of them: where the first point lies, and one over the width of a function.

    With KNOTS, the splines' order and one, the points are knots: so many more than functions.
    """
    first = points + grid * (FUNCTIONS + KNOTS)
    start = tl.load(first).to(tl.float32)
    if KNOTS:
        return start, (FUNCTIONS + KNOTS - 1) / (tl.load(first + FUNCTIONS + KNOTS - 1).to(tl.float32) - start)
    else:
        return start, tl.load(inverse + grid).to(tl.float32)


@triton.jit
def widths(u, start, scale, points, grid, f, FUNCTIONS: tl.constexpr, KNOTS: tl.constexpr):
    """How many widths u lies from the middle of function f, given the `spacing` of the grids."""
    if KNOTS:
        return (u - start) * scale - (KNOTS * 0.5 + f)
    else:
        return (u - tl.load(points + grid * FUNCTIONS + f).to(tl.float32)) * scale
