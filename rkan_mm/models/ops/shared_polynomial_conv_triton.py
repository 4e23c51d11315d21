"""The convolution of per-tap polynomials with one kernel for all channels, by Triton kernels.

The parameters are read as a layer holds them: scaler times coefficients and the change to monomials happen in the
kernels, so that a forward pass is one launch and never uses coefficients that are out of date. Both memory formats are
taken as they are. Sizes are arguments at run time, so that pictures of another size compile nothing. All is computed in
single precision, and sums are taken in a fixed order: blocks in one kernel, what they gave in double precision in
another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .shared_polynomial_conv_torch import Window, identity, shared_polynomial_conv2d_torch
from .triton_functions import tanh
from .triton_launch import HALF, interpreted, is_close, is_right, launch

TILE = 512  # elements that a program works on at a time
MAX_CHUNKS = 512  # of the outputs, each with weight gradients of its own
MAX_REGISTERS = 168  # of a thread: left alone, ptxas 12.9 spills some at 80
Parameters = tuple[Tensor, Tensor | None, Tensor | None]
"""Coefficients (d + 1, kh, kw); of the base branch, (kh, kw); factors of the coefficients, (kh, kw)."""
Change = tuple[float, ...] | None
"""(d + 1)^2 numbers: row n has what each polynomial has of t^n; None for the monomials themselves."""


def is_there(x: Tensor, parameters: Parameters, change: Change, squash: bool, window: Window,
             dtype: torch.dtype) -> bool:
    """Whether the kernels are right on this GPU, in the variant for these arguments."""
    weight = parameters[0]
    dtypes = tuple(None if t is None else t.dtype for t in parameters)
    return is_right(_agrees, x.dtype, dtypes, tuple(weight.shape), change, squash, window, dtype, _is_channels_last(x),
                    torch.is_grad_enabled())


def forward(x: Tensor, parameters: Parameters, change: Change, squash: bool, window: Window,
            dtype: torch.dtype) -> Tensor:
    """See :func:`shared_polynomial_conv2d`; u = tanh if ``squash``, else the identity. Lies in memory as ``x`` does."""
    x, parameters = _laid_out(x), _contiguous(parameters)
    size = window.output_size(x, parameters[0])
    y = torch.empty((*x.shape[:2], *size), dtype=dtype, device=x.device, memory_format=_layout(x))
    tiles, extent, tile = _tiles(y)
    launch(_forward, (tiles,), x, *_pointers(parameters), y, *extent, *x.shape[2:], *size, **tile,
           **_constants(x, parameters, squash, window), **_preparation(parameters, change))
    return y


def backward(x: Tensor, parameters: Parameters, change: Change, squash: bool, window: Window, grad: Tensor,
             for_input: bool, for_parameters: bool) -> tuple[Tensor | None, ...]:
    """Gradients of ``x`` and of the parameters, given that of the output."""
    x, parameters = _laid_out(x), _contiguous(parameters)
    grad = grad.contiguous(memory_format=_layout(x))
    constants, preparation = _constants(x, parameters, squash, window), _preparation(parameters, change)
    sizes = *x.shape[2:], *grad.shape[2:]
    grad_x, grads = None, (None, None, None)
    if for_input:
        grad_x = torch.empty_like(x)
        tiles, extent, tile = _tiles(x)
        launch(_backward_input, (tiles,), x, *_pointers(parameters), grad, grad_x, *extent, *sizes, **tile, **constants,
               **preparation)
    if for_parameters:
        tiles, extent, tile = _tiles(grad)
        each = triton.cdiv(tiles, MAX_CHUNKS)
        chunks, taps = triton.cdiv(tiles, each), parameters[0][0].numel()
        terms = triton.next_power_of_2(len(parameters[0]) + 1)
        sums = torch.empty(chunks, taps, terms, dtype=torch.float32, device=x.device)
        launch(_backward_weight, (taps, chunks), x, grad, sums, each, *extent, *sizes, TERMS=terms, **tile, **constants)
        grads = tuple(None if t is None else torch.empty_like(t) for t in parameters)
        launch(_finish, (taps,), sums, *_pointers(parameters), *_pointers(grads), chunks, TAPS=taps, TERMS=terms,
               DEGREE=constants['DEGREE'], BASE=constants['BASE'], **preparation)
    return grad_x, *grads


def prepared(parameters: Parameters, change: Change) -> tuple[Tensor, Tensor | None]:
    """What the kernels make of the parameters: coefficients of the monomials, and of the base branch."""
    weight, base_weight, scaler = parameters
    weight = weight if scaler is None else weight * scaler
    if change is not None:
        matrix = weight.new_tensor(change).reshape(len(weight), len(weight))
        weight = torch.einsum('nj,jhw->nhw', matrix, weight)
    return weight, base_weight


def _agrees(dtype: torch.dtype, dtypes: tuple[torch.dtype | None, ...], shape: tuple[int, ...], change: Change,
            squash: bool, window: Window, out_dtype: torch.dtype, channels_last: bool, training: bool,
            device: str = 'cuda') -> bool:
    """Whether a variant of the kernels gives what PyTorch gives in double precision, on a small input."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    height, width = (d * (k - 1) + 1 + 3 * s for d, k, s in zip(window.dilation, shape[1:], window.stride, strict=True))
    x = random(3, 5, height, width + 2, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    sizes = shape, shape[1:], shape[1:]
    parameters = tuple(None if d is None else random(*s, dtype=d) for s, d in zip(sizes, dtypes, strict=True))
    leaves = [t if t is None else t.double().requires_grad_() for t in (x, *parameters)]
    expected = shared_polynomial_conv2d_torch(leaves[0], *prepared(tuple(leaves[1:]), change),
                                              torch.tanh if squash else identity, None, *window)
    results, rights = [forward(x, parameters, change, squash, window, out_dtype)], [expected]
    if training:
        grad = random(*expected.shape, dtype=out_dtype)
        given = [leaf for leaf in leaves if leaf is not None]
        results += [t for t in backward(x, parameters, change, squash, window, grad, True, True) if t is not None]
        rights += torch.autograd.grad(expected, given, grad.double())
    return all(is_close(*pair) for pair in zip(results, rights, strict=True))


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if _is_channels_last(x) else torch.contiguous_format


def _laid_out(x: Tensor) -> Tensor:
    return x if _is_channels_last(x) else x.contiguous()


def _contiguous(parameters: Parameters) -> Parameters:
    return tuple(None if t is None else t.contiguous() for t in parameters)


def _pointers(parameters: Parameters) -> list[Tensor]:
    """In the place of what is not there, something that is not looked at."""
    return [parameters[0] if t is None else t for t in parameters]


def _tiles(outputs: Tensor) -> tuple[int, tuple[int, int], dict[str, int]]:
    """How a tensor is divided: number of tiles; of lanes and pixels; these of a tile.

    A lane is a plane, or a channel where they come last; pixels are those of a plane, or of all images then.
    """
    batch, channels, height, width = outputs.shape
    last = _is_channels_last(outputs)
    lanes, pixels = (channels, batch * height * width) if last else (batch * channels, height * width)
    inner = triton.next_power_of_2(min(TILE // 8, lanes if last else pixels))
    tile = (inner, TILE // inner) if last else (TILE // inner, inner)
    return triton.cdiv(lanes, tile[0]) * triton.cdiv(pixels, tile[1]), (lanes, pixels), dict(
        LANES=tile[0], PIXELS=tile[1])


def _constants(x: Tensor, parameters: Parameters, squash: bool, window: Window) -> dict:
    names = 'SH', 'SW', 'PH', 'PW', 'DH', 'DW', 'KH', 'KW'
    values = (*window.stride, *window.padding, *window.dilation, *parameters[0].shape[1:])
    return dict(zip(names, values, strict=True), DEGREE=len(parameters[0]) - 1, BASE=parameters[1] is not None,
                SQUASH=squash, HARDWARE=x.dtype in HALF and not interpreted(), LAST=_is_channels_last(x),
                maxnreg=MAX_REGISTERS)


def _preparation(parameters: Parameters, change: Change) -> dict:
    return dict(SCALED=parameters[2] is not None, CHANGE=change)


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


@triton.jit
def _forward(x, weight, base_weight, scaler, y, lanes, pixels, height, width, out_height, out_width,
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


@triton.jit
def _backward_input(x, weight, base_weight, scaler, grad, grad_x, lanes, pixels, height, width, out_height, out_width,
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


@triton.jit
def _backward_weight(x, grad, sums, tiles, lanes, pixels, height, width, out_height, out_width, SH: tl.constexpr,
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
def _finish(sums, weight, base_weight, scaler, grad_weight, grad_base, grad_scaler, chunks, TAPS: tl.constexpr,
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
