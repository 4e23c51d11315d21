"""The Triton kernels behind `fused_triton`. Sizes: BM pixels by BN columns of the result; BC of what is summed over."""

from __future__ import annotations

import triton
import triton.language as tl

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

SIZES = ['pixels', 'batch', 'height', 'width', 'out_height', 'out_width', 'blocks',
         *(f'{tensor}{axis}' for tensor in 'xyg' for axis in 'bchw')]
"""Arguments that change with the pictures; Triton would compile anew for multiples of 16."""


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    if PRECISION == 'emulated':  # Triton's interpreter takes the bits of bfloat16 for integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _split(pixel, height, width, FLAT: tl.constexpr):
    """Image, row and column of pixels that are counted over all images; FLAT where these have one pixel each."""
    if FLAT:
        return pixel.to(tl.int64), 0, 0
    else:
        image = pixel // (height * width)
        rest = pixel - image * height * width
        row = rest // width
        return image.to(tl.int64), row, rest - row * width


@triton.jit
def _of_pixels(image, row, column, tb, th, tw, LAYOUT: tl.constexpr, FLAT: tl.constexpr):
    """Where pixels lie in a tensor of these strides. LAYOUT 1 has channels side by side, 2 in multiples of 16, too."""
    if FLAT:
        place = image * tb
    else:
        place = image * tb + row.to(tl.int64) * th + column.to(tl.int64) * tw
    return tl.multiple_of(place, 16) if LAYOUT == 2 else place


@triton.jit
def _of_channels(c, tc, LAYOUT: tl.constexpr):
    return c if LAYOUT > 0 else c.to(tl.int64) * tc


@triton.jit
def _inside(row, column, height, width, FLAT: tl.constexpr):
    if FLAT:
        return True
    else:
        return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _polynomial(u, n, STEPS: tl.constexpr, FUNCTIONS: tl.constexpr, SLOPE: tl.constexpr):
    """P_{n + 1}, or its derivative."""
    value, before, slope, slope_before = tl.zeros_like(u) + 1.0, tl.zeros_like(u), tl.zeros_like(u), tl.zeros_like(u)
    found = value
    for m in tl.static_range(FUNCTIONS):
        following = polynomial_step(u, value, before, m, STEPS, FUNCTIONS)
        if SLOPE:
            slope_following = polynomial_slope_step(u, value, slope, slope_before, m, STEPS, FUNCTIONS)
            slope_before, slope = slope, slope_following
        before, value = value, following
        found = tl.where(n == m, slope if SLOPE else value, found)
    return found


@triton.jit
def _function(u, n, points, inverse, grid, KIND: tl.constexpr, FUNCTIONS: tl.constexpr, KNOTS: tl.constexpr,
              STEPS: tl.constexpr, SLOPE: tl.constexpr):
    """Function n of u, or its derivative; `grid`, of the inputs, can be broadcast against u."""
    if KIND == 0:
        return _polynomial(u, n, STEPS, FUNCTIONS, SLOPE)
    else:
        start, scale = spacing(points, inverse, grid, FUNCTIONS, KNOTS)
        z = widths(u, start, scale, points, grid, n, FUNCTIONS, KNOTS)
        return bump_slope(z, KIND) * scale if SLOPE else bump(z, KIND)


@triton.jit(do_not_specialize=SIZES)
def forward(x, packed, bias, points, inverse, y, pixels, inputs, outputs, height, width, out_height, out_width, xb, xc,
            xh, xw, yb, yc, yh, yw, KIND: tl.constexpr, FUNCTIONS: tl.constexpr, KNOTS: tl.constexpr,
            STEPS: tl.constexpr, BASE: tl.constexpr, CONSTANT: tl.constexpr, SQUASH: tl.constexpr, GRIDS: tl.constexpr,
            BIAS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
            PH: tl.constexpr, PW: tl.constexpr, HARDWARE: tl.constexpr, PRECISION: tl.constexpr, X: tl.constexpr,
            Y: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
            BC: tl.constexpr):
    pixel = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * BM + tl.arange(0, BM)
    there = pixel < pixels
    image, row, column = _split(pixel, out_height, out_width, FLAT)
    top, left = row * SH - PH, column * SW - PW
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    planes: tl.constexpr = (BASE > 0) + FUNCTIONS + CONSTANT
    blocks = tl.cdiv(inputs, BC)
    total = tl.zeros((BM, BN), tl.float32)
    shift = tl.zeros((BN,), tl.float32)
    for k in range(KH * KW * blocks):
        tap = k // blocks
        c = (k - tap * blocks) * BC + tl.arange(0, BC)
        r, s = top + tap // KW, left + tap % KW
        met = there & _inside(r, s, height, width, FLAT)
        place = x + _of_pixels(image, r, s, xb, xh, xw, X, FLAT)[:, None] + _of_channels(c, xc, X)[None, :]
        v = tl.load(place, met[:, None] & (c < inputs)[None, :], 0.0).to(tl.float32)
        u = tanh(v, HARDWARE) if SQUASH else v
        weights = packed + (tap * planes * inputs + c)[:, None] * outputs + o[None, :]
        known = (c < inputs)[:, None] & (o < outputs)[None, :]
        if BASE:
            w = tl.load(weights, known, 0.0)
            total = _dot(base_value(v, BASE).to(w.dtype), w, total, PRECISION)
            weights += inputs * outputs
        if KIND == 0:
            value, before = tl.zeros_like(u) + 1.0, tl.zeros_like(u)
            for n in tl.static_range(FUNCTIONS):
                following = polynomial_step(u, value, before, n, STEPS, FUNCTIONS)
                before, value = value, following
                w = tl.load(weights + n * inputs * outputs, known, 0.0)
                total = _dot(value.to(w.dtype), w, total, PRECISION)
        else:
            grid = tl.where(c < inputs, c, 0)[None, :] if GRIDS else 0
            start, scale = spacing(points, inverse, grid, FUNCTIONS, KNOTS)
            for n in tl.static_range(FUNCTIONS):
                value = bump(widths(u, start, scale, points, grid, n, FUNCTIONS, KNOTS), KIND)
                w = tl.load(weights + n * inputs * outputs, known, 0.0)
                total = _dot(value.to(w.dtype), w, total, PRECISION)
        if CONSTANT:
            w = tl.load(weights + FUNCTIONS * inputs * outputs, known, 0.0)
            shift += tl.sum(w.to(tl.float32), 0)
    if BIAS:
        shift += tl.load(bias + o, o < outputs, 0.0).to(tl.float32)
    total += shift[None, :]
    place = y + _of_pixels(image, row, column, yb, yh, yw, Y, FLAT)[:, None] + _of_channels(o, yc, Y)[None, :]
    tl.store(place, total.to(y.dtype.element_ty), there[:, None] & (o < outputs)[None, :])


@triton.jit
def _through(grad, packed, image, row, column, there, c, n, inputs, outputs, out_height, out_width, gb, gc, gh, gw, kh,
             kw, down, across, PLANES: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
             PRECISION: tl.constexpr, G: tl.constexpr, FLAT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             BC: tl.constexpr):
    """The gradient of plane n at the given pixels: over `down` x `across` taps from (kh, kw) on, and all outputs."""
    blocks = tl.cdiv(outputs, BC)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(down * across * blocks):
        tap = k // blocks
        o = (k - tap * blocks) * BC + tl.arange(0, BC)
        r, s = row - tap // across, column - tap % across
        met = there & _inside(r, s, out_height, out_width, FLAT)
        place = grad + _of_pixels(image, r, s, gb, gh, gw, G, FLAT)[:, None] + _of_channels(o, gc, G)[None, :]
        g = tl.load(place, met[:, None] & (o < outputs)[None, :], 0.0)
        of_kernel = (kh + tap // across * SH) * KW + kw + tap % across * SW
        place = packed + ((of_kernel * PLANES + n) * inputs + c)[None, :] * outputs + o[:, None]
        w = tl.load(place, (o < outputs)[:, None] & (c < inputs)[None, :], 0.0)
        total = _dot(g, w, total, PRECISION)
    return total


@triton.jit(do_not_specialize=SIZES)
def backward_input(x, packed, points, inverse, grad, grad_x, batch, inputs, outputs, height, width, out_height,
                   out_width, xb, xc, xh, xw, gb, gc, gh, gw, yb, yc, yh, yw, KIND: tl.constexpr,
                   FUNCTIONS: tl.constexpr, KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr,
                   CONSTANT: tl.constexpr, SQUASH: tl.constexpr, GRIDS: tl.constexpr, KH: tl.constexpr,
                   KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                   HARDWARE: tl.constexpr, PRECISION: tl.constexpr, X: tl.constexpr, G: tl.constexpr, Y: tl.constexpr,
                   FLAT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """Pixels at the same place within a stride meet the same taps: the third number of a program says which place."""
    dh, dw = tl.program_id(2) // SW, tl.program_id(2) % SW
    rows, columns = tl.maximum((height - dh + SH - 1) // SH, 1), tl.maximum((width - dw + SW - 1) // SW, 1)
    kh, kw = (dh + PH) % SH, (dw + PW) % SW
    down, across = (KH - kh + SH - 1) // SH, (KW - kw + SW - 1) // SW  # taps; none where kh >= KH
    pixel = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * BM + tl.arange(0, BM)
    image, row, column = _split(pixel, rows, columns, FLAT)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    r, s = row * SH + dh, column * SW + dw
    there = (image < batch) & _inside(r, s, height, width, FLAT)
    known = there[:, None] & (c < inputs)[None, :]
    place = x + _of_pixels(image, r, s, xb, xh, xw, X, FLAT)[:, None] + _of_channels(c, xc, X)[None, :]
    out_row, out_column = (r + PH - kh) // SH, (s + PW - kw) // SW  # which the first tap meets
    grid = (tl.where(c < inputs, c, 0) if GRIDS else tl.zeros_like(c))[None, :]
    planes: tl.constexpr = (BASE > 0) + FUNCTIONS + CONSTANT
    total = tl.zeros((BM, BN), tl.float32)
    for n in range(FUNCTIONS):
        g = _through(grad, packed, image, out_row, out_column, there, c, (BASE > 0) + n, inputs, outputs, out_height,
                     out_width, gb, gc, gh, gw, kh, kw, down, across, planes, KW, SH, SW, PRECISION, G, FLAT, BM, BN,
                     BC)
        v = tl.load(place, known, 0.0).to(tl.float32)  # again each time: it would fill the registers
        u = tanh(v, HARDWARE) if SQUASH else v
        slope = _function(u, n, points, inverse, grid, KIND, FUNCTIONS, KNOTS, STEPS, True)
        total += g * (slope * (1.0 - u * u) if SQUASH else slope)
    if BASE:
        g = _through(grad, packed, image, out_row, out_column, there, c, 0, inputs, outputs, out_height, out_width, gb,
                     gc, gh, gw, kh, kw, down, across, planes, KW, SH, SW, PRECISION, G, FLAT, BM, BN, BC)
        total += g * base_slope(tl.load(place, known, 0.0).to(tl.float32), BASE)
    place = grad_x + _of_pixels(image, r, s, yb, yh, yw, Y, FLAT)[:, None] + _of_channels(c, yc, Y)[None, :]
    tl.store(place, total.to(grad_x.dtype.element_ty), known)


@triton.jit
def _products(x, grad, points, inverse, n, tap, c, o, pixels, blocks, inputs, outputs, height, width, out_height,
              out_width, xb, xc, xh, xw, gb, gc, gh, gw, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
              KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr, GRIDS: tl.constexpr,
              KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
              HARDWARE: tl.constexpr, PRECISION: tl.constexpr, X: tl.constexpr, G: tl.constexpr, FLAT: tl.constexpr,
              WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """Sums over a chunk of pixels: of function n (or, with BASE, the base function) times the outputs' gradients."""
    total = tl.zeros((BC, BN), tl.float32)
    grid = (tl.where(c < inputs, c, 0) if GRIDS else tl.zeros_like(c))[:, None]
    first = tl.program_id(2).to(tl.int64 if WIDE else tl.int32) * blocks * BM
    for block in range(blocks):
        pixel = first + block * BM + tl.arange(0, BM)
        image, row, column = _split(pixel, out_height, out_width, FLAT)
        there = pixel < pixels
        r, s = row * SH - PH + tap // KW, column * SW - PW + tap % KW
        met = there & _inside(r, s, height, width, FLAT)
        place = x + _of_pixels(image, r, s, xb, xh, xw, X, FLAT)[None, :] + _of_channels(c, xc, X)[:, None]
        v = tl.load(place, met[None, :] & (c < inputs)[:, None], 0.0).to(tl.float32)
        if BASE:
            value = base_value(v, BASE)
        else:
            value = _function(tanh(v, HARDWARE) if SQUASH else v, n, points, inverse, grid, KIND, FUNCTIONS, KNOTS,
                              STEPS, False)
        place = grad + _of_pixels(image, row, column, gb, gh, gw, G, FLAT)[:, None] + _of_channels(o, gc, G)[None, :]
        g = tl.load(place, there[:, None] & (o < outputs)[None, :], 0.0)
        total = _dot(value.to(g.dtype), g, total, PRECISION)
    return total


@triton.jit(do_not_specialize=SIZES)
def backward_weight(x, grad, points, inverse, sums, pixels, blocks, inputs, outputs, height, width, out_height,
                    out_width, xb, xc, xh, xw, gb, gc, gh, gw, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
                    KNOTS: tl.constexpr, STEPS: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr,
                    GRIDS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
                    PH: tl.constexpr, PW: tl.constexpr, HARDWARE: tl.constexpr, PRECISION: tl.constexpr,
                    X: tl.constexpr, G: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
                    BN: tl.constexpr, BC: tl.constexpr):
    """Of a tile of (in, out), a tap, a plane and a chunk of pixels: the gradient of the packed weights."""
    columns = tl.cdiv(outputs, BN)
    c = tl.program_id(0) // columns * BC + tl.arange(0, BC)
    o = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    planes: tl.constexpr = (BASE > 0) + FUNCTIONS
    tap, plane = tl.program_id(1) // planes, tl.program_id(1) % planes
    if plane < (BASE > 0):
        total = _products(x, grad, points, inverse, 0, tap, c, o, pixels, blocks, inputs, outputs, height, width,
                          out_height, out_width, xb, xc, xh, xw, gb, gc, gh, gw, KIND, FUNCTIONS, KNOTS, STEPS, BASE,
                          SQUASH, GRIDS, KW, SH, SW, PH, PW, HARDWARE, PRECISION, X, G, FLAT, WIDE, BM, BN, BC)
    else:
        total = _products(x, grad, points, inverse, plane - (BASE > 0), tap, c, o, pixels, blocks, inputs, outputs,
                          height, width, out_height, out_width, xb, xc, xh, xw, gb, gc, gh, gw, KIND, FUNCTIONS, KNOTS,
                          STEPS, 0, SQUASH, GRIDS, KW, SH, SW, PH, PW, HARDWARE, PRECISION, X, G, FLAT, WIDE, BM, BN,
                          BC)
    chunk = (tl.program_id(2).to(tl.int64) * KH * KW * planes + tl.program_id(1)) * inputs * outputs
    tl.store(sums + chunk + c[:, None] * outputs + o[None, :], total, (c < inputs)[:, None] & (o < outputs)[None, :])
