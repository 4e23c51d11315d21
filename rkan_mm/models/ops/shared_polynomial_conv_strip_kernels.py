"""The Triton kernels behind `shared_polynomial_conv_triton` for kernels of few taps.

A tile is of strips by lanes. A lane is a channel; where channels do not come last, each plane counts as an image of one
channel. A strip is a few columns of the result, and goes down row by row: each input is loaded and squashed once for
all taps that see it, what the rows below still wait for stays in registers, and so do the coefficients of all taps.
Rows and columns of the input are counted from the first padded ones. With ACT the input goes through SiLU first; with
NORM the result goes through a batch norm that is constant.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_functions import base_slope, base_value, tanh

SIZES = ['strips', 'rows', 'tiles', 'height', 'width', 'out_height', 'out_width']
"""Arguments that change with the pictures; Triton would compile anew for multiples of 16."""


@triton.jit
def _coefficients(weight, scaler, TAPS: tl.constexpr, DEGREE: tl.constexpr, SCALED: tl.constexpr,
                  CHANGE: tl.constexpr):
    """Coefficients of 1, t, ..., t^d at all taps, one tap after the other."""
    found = ()
    for tap in tl.static_range(TAPS):
        given = ()
        for j in tl.static_range(DEGREE + 1):
            given += (tl.load(weight + j * TAPS + tap).to(tl.float32),)
        factor = tl.load(scaler + tap).to(tl.float32) if SCALED else 1.0
        for n in tl.static_range(DEGREE + 1):
            if CHANGE is None:
                found += (given[n] * factor,)
            else:
                total = given[0] * 0.0
                for j in tl.static_range(DEGREE + 1):
                    if CHANGE[n * (DEGREE + 1) + j] != 0:
                        total += CHANGE[n * (DEGREE + 1) + j] * given[j]
                found += (total * factor,)
    return found


@triton.jit
def _of_base(base_weight, TAPS: tl.constexpr, BASE: tl.constexpr):
    found = ()
    if BASE:
        for tap in tl.static_range(TAPS):
            found += (tl.load(base_weight + tap).to(tl.float32),)
    return found


@triton.jit
def _strips(tile, lanes, strips, rows, down, across, COLUMNS: tl.constexpr, STRIPS: tl.constexpr,
            LANES: tl.constexpr):
    """Of a tile: its lanes; image, first row and first column of its strips; which of both exist."""
    blocks = tl.cdiv(lanes, LANES)
    lane = (tile % blocks * LANES + tl.arange(0, LANES))[None, :]
    strip = (tile // blocks).to(tl.int64) * STRIPS + tl.arange(0, STRIPS)[:, None]
    image = strip // (across * down)
    rest = (strip - image * (across * down)).to(tl.int32)
    return lane, image, rest // across * rows, rest % across * COLUMNS, (strip < strips) & (lane < lanes)


@triton.jit
def _load(place, row, column, lanes, height, width, there):
    """A pixel of each strip; zeros outside."""
    met = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tl.load(place + (row * width + column).to(tl.int64) * lanes, met, 0.0).to(tl.float32)


@triton.jit
def _affine(mean, variance, gamma, beta, channel, channels, EPS: tl.constexpr):
    """Factor and summand of a constant batch norm, for these channels."""
    there = channel < channels
    factor = tl.load(gamma + channel, there, 0.0).to(tl.float32) / tl.sqrt(
        tl.load(variance + channel, there, 1.0).to(tl.float32) + EPS)
    return factor, tl.load(beta + channel, there, 0.0).to(tl.float32) - factor * tl.load(
        mean + channel, there, 0.0).to(tl.float32)


@triton.jit(do_not_specialize=[*SIZES, 'channels'])
def forward(x, weight, base_weight, scaler, y, mean, variance, gamma, beta, lanes, strips, rows, height, width,
            out_height, out_width, channels, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
            DH: tl.constexpr, DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr,
            BASE: tl.constexpr, SCALED: tl.constexpr, CHANGE: tl.constexpr, SQUASH: tl.constexpr,
            HARDWARE: tl.constexpr, ACT: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, COLUMNS: tl.constexpr,
            STRIPS: tl.constexpr, LANES: tl.constexpr):
    lane, image, top, left, there = _strips(tl.program_id(0), lanes, strips, rows, tl.cdiv(out_height, rows),
                                            tl.cdiv(out_width, COLUMNS), COLUMNS, STRIPS, LANES)
    k = _coefficients(weight, scaler, KH * KW, DEGREE, SCALED, CHANGE)
    b = _of_base(base_weight, KH * KW, BASE)
    constant = k[0] * 0.0  # padded taps have it, too
    for tap in tl.static_range(KH * KW):
        constant += k[tap * (DEGREE + 1)]
    nothing = tl.zeros((STRIPS, LANES), tl.float32) + constant
    WAITING: tl.constexpr = (KH - 1) * DH // SH + 1  # rows of the result that an input row may count for
    WIDTH: tl.constexpr = (COLUMNS - 1) * SW + (KW - 1) * DW + 1
    waiting = (nothing,) * (WAITING * COLUMNS)
    if NORM:
        factor, summand = _affine(mean, variance, gamma, beta, lane if LANES > 1 else image % channels, channels, EPS)
    of_x, of_y = x + image * height * width * lanes + lane, y + image * out_height * out_width * lanes + lane
    for step in range(rows + WAITING - 1):
        values, squashed = (), ()
        for s in tl.static_range(SH):
            for j in tl.static_range(WIDTH):
                v = _load(of_x, (top + step) * SH - PH + s, left * SW - PW + j, lanes, height, width, there)
                v = base_value(v, 2) if ACT else v
                values += (v,)
                squashed += (tanh(v, HARDWARE) if SQUASH else v,)
        following = ()
        for p in tl.static_range(WAITING):
            for c in tl.static_range(COLUMNS):
                total = waiting[p * COLUMNS + c]
                for s in tl.static_range(SH):
                    for kh in tl.static_range(KH):
                        if kh * DH - s == p * SH:
                            for kw in tl.static_range(KW):
                                t = squashed[s * WIDTH + c * SW + kw * DW]
                                value = k[(kh * KW + kw) * (DEGREE + 1) + DEGREE]
                                for n in tl.static_range(DEGREE - 1):
                                    value = value * t + k[(kh * KW + kw) * (DEGREE + 1) + DEGREE - 1 - n]
                                total += value * t
                                if BASE:
                                    total += b[kh * KW + kw] * values[s * WIDTH + c * SW + kw * DW]
                following += (total,)
        row = top + step - (WAITING - 1)
        waiting = (nothing,) * COLUMNS
        for o in tl.static_range((WAITING - 1) * COLUMNS):
            waiting += (following[o],)
        for c in tl.static_range(COLUMNS):
            met = there & (row >= top) & (row < out_height) & (left + c < out_width)
            value = following[(WAITING - 1) * COLUMNS + c]
            if NORM:
                value = value * factor + summand
            tl.store(of_y + (row * out_width + left + c).to(tl.int64) * lanes, value.to(y.dtype.element_ty), met)


@triton.jit(do_not_specialize=SIZES)
def backward_input(x, weight, base_weight, scaler, grad, grad_x, lanes, strips, rows, height, width, out_height,
                   out_width, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                   DH: tl.constexpr, DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr,
                   BASE: tl.constexpr, SCALED: tl.constexpr, CHANGE: tl.constexpr, SQUASH: tl.constexpr,
                   HARDWARE: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, STRIPS: tl.constexpr,
                   LANES: tl.constexpr):
    """A strip is of inputs here, in multiples of the stride: sums of the outputs' gradients by the powers of t."""
    ABOVE: tl.constexpr = PH // SH  # where inputs begin, in strides; so do columns
    BEFORE: tl.constexpr = PW // SW
    down, across = tl.cdiv(height + PH - ABOVE * SH, SH), tl.cdiv(width + PW - BEFORE * SW, SW)
    lane, image, top, left, there = _strips(tl.program_id(0), lanes, strips, rows, tl.cdiv(down, rows),
                                            tl.cdiv(across, COLUMNS), COLUMNS, STRIPS, LANES)
    k = _coefficients(weight, scaler, KH * KW, DEGREE, SCALED, CHANGE)
    b = _of_base(base_weight, KH * KW, BASE)
    nothing = tl.zeros((STRIPS, LANES), tl.float32)
    TERMS: tl.constexpr = DEGREE + BASE
    WAITING: tl.constexpr = (KH - 1) * DH + 1  # rows of inputs that a row of gradients counts for
    WIDTH: tl.constexpr = COLUMNS * SW
    LEFT: tl.constexpr = (KW - 1) * DW // SW
    EARLIER: tl.constexpr = (KH - 1) * DH // SH
    waiting = (nothing,) * (WAITING * WIDTH * TERMS)
    of_x, of_grad_x = x + image * height * width * lanes + lane, grad_x + image * height * width * lanes + lane
    of_grad = grad + image * out_height * out_width * lanes + lane
    for step in range(rows + EARLIER):
        above = top + ABOVE + step - EARLIER  # the row of gradients
        given = ()
        for j in tl.static_range(LEFT + COLUMNS):
            given += (_load(of_grad, above, left + BEFORE + j - LEFT, lanes, out_height, out_width, there),)
        following = ()
        for r in tl.static_range(WAITING):
            for i in tl.static_range(WIDTH):
                for n in tl.static_range(TERMS):
                    total = waiting[(r * WIDTH + i) * TERMS + n]
                    if r % DH == 0:
                        for kw in tl.static_range(KW):
                            if (i - kw * DW) % SW == 0:
                                g = given[(i - kw * DW) // SW + LEFT]
                                if n == DEGREE:
                                    total += b[r // DH * KW + kw] * g
                                else:
                                    total += k[(r // DH * KW + kw) * (DEGREE + 1) + n + 1] * (n + 1) * g
                    following += (total,)
        for r in tl.static_range(SH):
            for i in tl.static_range(WIDTH):
                row, column = above * SH - PH + r, (left + BEFORE) * SW - PW + i
                v = _load(of_x, row, column, lanes, height, width, there)
                a = base_value(v, 2) if ACT else v
                t = tanh(a, HARDWARE) if SQUASH else a
                if r < WAITING:
                    total = following[(r * WIDTH + i) * TERMS + DEGREE - 1]
                    for n in tl.static_range(DEGREE - 1):
                        total = total * t + following[(r * WIDTH + i) * TERMS + DEGREE - 2 - n]
                    total = total * (1.0 - t * t) if SQUASH else total
                    if BASE:
                        total += following[(r * WIDTH + i) * TERMS + DEGREE]
                    total = total * base_slope(v, 2) if ACT else total
                else:
                    total = nothing
                met = there & (step >= EARLIER) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                place = of_grad_x + (row * width + column).to(tl.int64) * lanes
                tl.store(place, total.to(grad_x.dtype.element_ty), met)
        waiting = ()
        for o in tl.static_range(WAITING * WIDTH * TERMS):
            if o // (WIDTH * TERMS) + SH < WAITING:
                waiting += (following[o + SH * WIDTH * TERMS],)
            else:
                waiting += (nothing,)


@triton.jit(do_not_specialize=SIZES)
def backward_weight(x, grad, sums, tiles, lanes, strips, rows, height, width, out_height, out_width, SH: tl.constexpr,
                    SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
                    KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr, SQUASH: tl.constexpr,
                    HARDWARE: tl.constexpr, ACT: tl.constexpr, COLUMNS: tl.constexpr, STRIPS: tl.constexpr,
                    LANES: tl.constexpr, TERMS: tl.constexpr):
    """Sums, for each tap and over some tiles, of the outputs' gradients times 1, t, t^2, ...; and times x."""
    nothing = tl.zeros((STRIPS, LANES), tl.float32)
    POWERS: tl.constexpr = DEGREE + BASE
    WAITING: tl.constexpr = (KH - 1) * DH // SH + 1
    WIDTH: tl.constexpr = (COLUMNS - 1) * SW + (KW - 1) * DW + 1
    totals, of_all = (nothing,) * (KH * KW * POWERS), nothing
    down, across = tl.cdiv(out_height, rows), tl.cdiv(out_width, COLUMNS)
    for tile in range(tl.program_id(0) * tiles, tl.program_id(0) * tiles + tiles):
        lane, image, top, left, there = _strips(tile, lanes, strips, rows, down, across, COLUMNS, STRIPS, LANES)
        of_x = x + image * height * width * lanes + lane
        of_grad = grad + image * out_height * out_width * lanes + lane
        waiting = (nothing,) * (WAITING * COLUMNS)  # rows of gradients, the last one first
        for step in range(rows + WAITING - 1):
            gradients = ()
            for c in tl.static_range(COLUMNS):
                g = _load(of_grad, top + step, left + c, lanes, out_height, out_width, there & (step < rows))
                of_all += g
                gradients += (g,)
            for o in tl.static_range((WAITING - 1) * COLUMNS):
                gradients += (waiting[o],)
            waiting = gradients
            powers = ()
            for s in tl.static_range(SH):
                for j in tl.static_range(WIDTH):
                    v = _load(of_x, (top + step) * SH - PH + s, left * SW - PW + j, lanes, height, width, there)
                    v = base_value(v, 2) if ACT else v
                    t = tanh(v, HARDWARE) if SQUASH else v
                    power = t
                    for _ in tl.static_range(DEGREE):
                        powers += (power,)
                        power = power * t
                    if BASE:
                        powers += (v,)
            following = ()
            for kh in tl.static_range(KH):
                for kw in tl.static_range(KW):
                    for n in tl.static_range(POWERS):
                        total = totals[(kh * KW + kw) * POWERS + n]
                        for s in tl.static_range(SH):
                            if kh * DH >= s and (kh * DH - s) % SH == 0:
                                for c in tl.static_range(COLUMNS):
                                    total += gradients[(kh * DH - s) // SH * COLUMNS + c] * powers[
                                        (s * WIDTH + c * SW + kw * DW) * POWERS + n]
                        following += (total,)
            totals = following
    term = tl.arange(0, TERMS)
    whole = tl.sum(of_all)
    for tap in tl.static_range(KH * KW):
        found = tl.where(term == 0, whole, 0.0)
        for n in tl.static_range(POWERS):
            found += tl.where(term == n + 1, tl.sum(totals[tap * POWERS + n]), 0.0)
        tl.store(sums + (tl.program_id(0) * KH * KW + tap) * TERMS + term, found)
