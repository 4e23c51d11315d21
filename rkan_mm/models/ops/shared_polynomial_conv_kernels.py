"""The Triton kernels behind `shared_polynomial_conv_triton`.

A tile is of lanes (planes, or channels where these come last, LAST) by pixels, and lies in registers as in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_functions import tanh

SIZES = ['tiles', 'pixels', 'height', 'width', 'out_height', 'out_width']
"""Arguments that change with the pictures; Triton would compile anew for multiples of 16."""


@triton.jit
def _monomials(weight, scaler, tap, TAPS: tl.constexpr, DEGREE: tl.constexpr, SCALED: tl.constexpr,
               CHANGE: tl.constexpr):
    """Coefficients of 1, t, ..., t^d at a tap."""
    found = ()
    for n in tl.static_range(DEGREE + 1):
        if CHANGE is None:
            total = tl.load(weight + n * TAPS + tap).to(tl.float32)
        else:
            total = 0.0
            for j in tl.static_range(DEGREE + 1):
                if CHANGE[n * (DEGREE + 1) + j] != 0:
                    total += CHANGE[n * (DEGREE + 1) + j] * tl.load(weight + j * TAPS + tap).to(tl.float32)
        if SCALED:
            total *= tl.load(scaler + tap).to(tl.float32)
        found += (total,)
    return found


@triton.jit
def _lanes(block, lanes, size, LAST: tl.constexpr, LANES: tl.constexpr):
    """Planes, or channels where they come last: where each begins in its array, and which exist; broadcast to a tile.

    `lanes` is their number, `size` that of a plane's elements.
    """
    lane = block.to(tl.int64) * LANES + tl.arange(0, LANES)
    lane = lane[None, :] if LAST else lane[:, None]
    return lane if LAST else lane * size, lane < lanes


@triton.jit
def _pixels(block, pixels, height, width, LAST: tl.constexpr, PIXELS: tl.constexpr):
    """Pixels of a plane, or of all images where channels come last: image, row, column, existence."""
    pixel = block.to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    image = pixel // (height * width)
    rest = (pixel - image * height * width).to(tl.int32)
    row = rest // width
    return image, row, rest - row * width, pixel < pixels


@triton.jit
def _across(pixel, LAST: tl.constexpr):
    """What belongs to pixels, broadcast to a tile."""
    return pixel[:, None] if LAST else pixel[None, :]


@triton.jit
def _offset(image, row, column, lanes, height, width, LAST: tl.constexpr):
    """Of pixels in an array; columns and rows may lie outside."""
    place = (image * height + row) * width + column
    return place * lanes if LAST else place


@triton.jit
def _value(v, weight, base_weight, scaler, tap, TAPS: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
           SCALED: tl.constexpr, CHANGE: tl.constexpr, SQUASH: tl.constexpr, HARDWARE: tl.constexpr):
    """The function of a tap, at v."""
    c = _monomials(weight, scaler, tap, TAPS, DEGREE, SCALED, CHANGE)
    t = tanh(v, HARDWARE) if SQUASH else v
    value = t * c[DEGREE] + c[DEGREE - 1]
    for n in tl.static_range(DEGREE - 1):
        value = value * t + c[DEGREE - 2 - n]
    if BASE:
        value += tl.load(base_weight + tap).to(tl.float32) * v
    return value


@triton.jit(do_not_specialize=SIZES)
def forward(x, weight, base_weight, scaler, y, lanes, pixels, height, width, out_height, out_width,
             SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
             DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
             SCALED: tl.constexpr, CHANGE: tl.constexpr, SQUASH: tl.constexpr, HARDWARE: tl.constexpr,
             LAST: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr):
    blocks = tl.cdiv(lanes, LANES)
    lane, lane_there = _lanes(tl.program_id(0) % blocks, lanes, height * width, LAST, LANES)
    image, row, column, there = _pixels(tl.program_id(0) // blocks, pixels, out_height, out_width, LAST, PIXELS)
    top, left = row * SH - PH, column * SW - PW
    first = x + lane + _across(_offset(image, top, left, lanes, height, width, LAST), LAST)
    total = tl.zeros((PIXELS, LANES) if LAST else (LANES, PIXELS), tl.float32)
    for tap in tl.range(KH * KW, loop_unroll_factor=KH * KW if KH * KW <= 9 else 1):
        r, c = tap // KW * DH, tap % KW * DW
        met = there & (top + r >= 0) & (top + r < height) & (left + c >= 0) & (left + c < width)
        place = first + (r * width + c) * (lanes if LAST else 1)
        v = tl.load(place, _across(met, LAST) & lane_there, 0.0).to(tl.float32)
        total += _value(v, weight, base_weight, scaler, tap, KH * KW, DEGREE, BASE, SCALED, CHANGE, SQUASH, HARDWARE)
    lane, _ = _lanes(tl.program_id(0) % blocks, lanes, out_height * out_width, LAST, LANES)
    place = y + lane + _across(_offset(image, row, column, lanes, out_height, out_width, LAST), LAST)
    tl.store(place, total.to(y.dtype.element_ty), _across(there, LAST) & lane_there)


@triton.jit(do_not_specialize=SIZES)
def backward_input(x, weight, base_weight, scaler, grad, grad_x, lanes, pixels, height, width, out_height, out_width,
                    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
                    DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
                    SCALED: tl.constexpr, CHANGE: tl.constexpr, SQUASH: tl.constexpr, HARDWARE: tl.constexpr,
                    LAST: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr):
    blocks = tl.cdiv(lanes, LANES)
    lane, lane_there = _lanes(tl.program_id(0) % blocks, lanes, height * width, LAST, LANES)
    image, row, column, there = _pixels(tl.program_id(0) // blocks, pixels, height, width, LAST, PIXELS)
    place = lane + _across(_offset(image, row, column, lanes, height, width, LAST), LAST)
    v = tl.load(x + place, _across(there, LAST) & lane_there, 0.0).to(tl.float32)
    t = tanh(v, HARDWARE) if SQUASH else v
    lane, _ = _lanes(tl.program_id(0) % blocks, lanes, out_height * out_width, LAST, LANES)
    through = tl.zeros((PIXELS, LANES) if LAST else (LANES, PIXELS), tl.float32)  # the polynomials
    total = tl.zeros((PIXELS, LANES) if LAST else (LANES, PIXELS), tl.float32)
    for tap in tl.range(KH * KW, loop_unroll_factor=KH * KW if KH * KW <= 9 else 1):
        r, c = row + PH - tap // KW * DH, column + PW - tap % KW * DW
        met = there & (r >= 0) & (r % SH == 0) & (r // SH < out_height)
        met = met & (c >= 0) & (c % SW == 0) & (c // SW < out_width)
        offset = _offset(image, r // SH, c // SW, lanes, out_height, out_width, LAST)
        g = tl.load(grad + lane + _across(offset, LAST), _across(met, LAST) & lane_there, 0.0).to(tl.float32)
        k = _monomials(weight, scaler, tap, KH * KW, DEGREE, SCALED, CHANGE)
        if DEGREE == 1:
            through += k[1] * g
        else:
            slope = DEGREE * k[DEGREE] * t + (DEGREE - 1) * k[DEGREE - 1]
            for n in tl.static_range(DEGREE - 2):
                slope = slope * t + (DEGREE - 2 - n) * k[DEGREE - 2 - n]
            through += slope * g
        if BASE:
            total += tl.load(base_weight + tap).to(tl.float32) * g
    total += through * (1.0 - t * t) if SQUASH else through
    tl.store(grad_x + place, total.to(grad_x.dtype.element_ty), _across(there, LAST) & lane_there)


@triton.jit(do_not_specialize=SIZES)
def backward_weight(x, grad, sums, tiles, lanes, pixels, height, width, out_height, out_width, SH: tl.constexpr,
                     SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
                     KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
                     SQUASH: tl.constexpr, HARDWARE: tl.constexpr, LAST: tl.constexpr, LANES: tl.constexpr,
                     PIXELS: tl.constexpr, TERMS: tl.constexpr):
    """Sums, for a tap and a chunk of tiles, of the outputs' gradients times 1, t, t^2, ...; and times x."""
    tap, chunk = tl.program_id(0), tl.program_id(1)  # all taps of a chunk run at about the same time
    blocks = tl.cdiv(lanes, LANES)
    totals = (tl.zeros((PIXELS, LANES) if LAST else (LANES, PIXELS), tl.float32),) * (DEGREE + 1 + BASE)
    for tile in range(chunk * tiles, chunk * tiles + tiles):
        lane, lane_there = _lanes(tile % blocks, lanes, height * width, LAST, LANES)
        image, row, column, there = _pixels(tile // blocks, pixels, out_height, out_width, LAST, PIXELS)
        r, c = row * SH - PH + tap // KW * DH, column * SW - PW + tap % KW * DW
        met = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        place = x + lane + _across(_offset(image, r, c, lanes, height, width, LAST), LAST)
        v = tl.load(place, _across(met, LAST) & lane_there, 0.0).to(tl.float32)
        lane, _ = _lanes(tile % blocks, lanes, out_height * out_width, LAST, LANES)
        place = grad + lane + _across(_offset(image, row, column, lanes, out_height, out_width, LAST), LAST)
        g = tl.load(place, _across(there, LAST) & lane_there, 0.0).to(tl.float32)
        t = tanh(v, HARDWARE) if SQUASH else v
        power, following = g, ()
        for n in tl.static_range(DEGREE + 1):
            following += (totals[n] + power,)
            power = power * t
        if BASE:
            following += (totals[DEGREE + 1] + g * v,)
        totals = following
    term = tl.arange(0, TERMS)
    found = tl.zeros((TERMS,), tl.float32)
    for n in tl.static_range(DEGREE + 1 + BASE):
        found += tl.where(term == n, tl.sum(totals[n]), 0.0)
    tl.store(sums + (chunk * KH * KW + tap) * TERMS + term, found)


@triton.jit(do_not_specialize=['chunks'])
def finish(sums, weight, base_weight, scaler, grad_weight, grad_base, grad_scaler, chunks, TAPS: tl.constexpr,
            DEGREE: tl.constexpr, BASE: tl.constexpr, SCALED: tl.constexpr, CHANGE: tl.constexpr,
            TERMS: tl.constexpr):
    """Of a tap: the gradients of the parameters."""
    tap, term = tl.program_id(0), tl.arange(0, TERMS)
    total = tl.zeros((TERMS,), tl.float64)
    for first in range(0, chunks, 64):
        chunk = first + tl.arange(0, 64)[:, None]
        total += tl.sum(tl.load(sums + (chunk * TAPS + tap) * TERMS + term, chunk < chunks, 0.0).to(tl.float64), 0)
    by_scaler = 0.0
    for j in tl.static_range(DEGREE + 1):
        change = tl.zeros((TERMS,), tl.float64)  # of the polynomial to monomials
        for n in tl.static_range(DEGREE + 1):
            if CHANGE is None:
                change += tl.where(term == n, 1.0 if n == j else 0.0, 0.0)
            else:
                change += tl.where(term == n, CHANGE[n * (DEGREE + 1) + j], 0.0)
        slope = tl.sum(total * change, 0).to(tl.float32)
        if SCALED:
            by_scaler += slope * tl.load(weight + j * TAPS + tap).to(tl.float32)
            slope *= tl.load(scaler + tap).to(tl.float32)
        tl.store(grad_weight + j * TAPS + tap, slope.to(grad_weight.dtype.element_ty))
    if SCALED:
        tl.store(grad_scaler + tap, by_scaler.to(grad_scaler.dtype.element_ty))
    if BASE:
        slope = tl.sum(tl.where(term == DEGREE + 1, total, 0.0), 0).to(tl.float32)
        tl.store(grad_base + tap, slope.to(grad_base.dtype.element_ty))
