"""The convolution of per-tap polynomials with one kernel for all channels, by Triton kernels.

Sizes are arguments at run time, so that pictures of another size compile nothing. All is computed in single precision.
Sums over the elements are taken in a fixed order: blocks in one kernel, what they gave in double precision after it.
"""

from __future__ import annotations

import functools
import logging

import torch
import triton
import triton.language as tl
from mmengine.logging import MMLogger
from torch import Tensor

from .compiled import kernels_wanted
from .shared_polynomial_conv_torch import MAX_DEGREE, Window, agrees_with_pytorch

BLOCK = 1024
MAX_CHUNKS = 512  # of the outputs, each with weight gradients of its own


def is_there() -> bool:
    return kernels_wanted() and _runs()


@functools.cache
def _runs() -> bool:
    """Whether the kernels compile on this machine's GPU and give what PyTorch gives."""
    try:
        if agrees_with_pytorch(forward, backward, 'cuda'):
            return True
        reason = 'their results differ from those of PyTorch'
    except Exception as error:  # whatever Triton, its compiler or the driver may raise
        reason = f'{type(error).__name__}: {error}'
    MMLogger.get_current_instance().log(
        logging.WARNING, f'rkan_mm goes on in plain PyTorch, without the Triton kernels of {__name__}: {reason}')
    return False


def forward(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window,
            dtype: torch.dtype) -> Tensor:
    """See :func:`shared_polynomial_conv_cpu.forward`."""
    x = x.contiguous()
    height, width = window.output_size(x, weight)
    y = x.new_empty(*x.shape[:2], height, width, dtype=dtype)
    with torch.cuda.device_of(x):
        _forward[triton.cdiv(y.numel(), BLOCK),](
            x, _by_tap(weight, base_weight), weight[0].double().sum().float(), y, y.numel(), *x.shape[2:], height,
            width, **_constants(weight, base_weight, squash, window))
    return y


def backward(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window, grad: Tensor,
             for_input: bool, for_weights: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """See :func:`shared_polynomial_conv_cpu.backward`."""
    x, grad = x.contiguous(), grad.contiguous()
    sizes = *x.shape[2:], *grad.shape[2:]
    constants = _constants(weight, base_weight, squash, window)
    grad_x = grad_weight = grad_base = None
    with torch.cuda.device_of(x):
        if for_input:
            grad_x = torch.empty_like(x)
            _backward_input[triton.cdiv(x.numel(), BLOCK),](x, _by_tap(weight, base_weight), grad, grad_x, x.numel(),
                                                            *sizes, **constants)
        if for_weights:
            blocks = triton.cdiv(grad.numel(), BLOCK)
            chunks = min(blocks, MAX_CHUNKS)
            taps, terms = weight[0].numel(), triton.next_power_of_2(MAX_DEGREE + 2)
            sums = x.new_empty(chunks, taps, terms, dtype=torch.float32)
            _backward_weight[taps, chunks](x, grad, sums, grad.numel(), triton.cdiv(blocks, chunks), *sizes,
                                           TERMS=terms, **constants)
            totals = sums.double().sum(0).float().t().reshape(terms, *weight.shape[1:])
            grad_weight = totals[:len(weight)]
            grad_base = None if base_weight is None else totals[-1]
    return grad_x, grad_weight, grad_base


def _by_tap(weight: Tensor, base_weight: Tensor | None) -> Tensor:
    """The coefficients of a tap, c_1 ... c_d and w if there is one, after one another."""
    rows = [weight[1:]] if base_weight is None else [weight[1:], base_weight[None]]
    return torch.cat(rows).flatten(1).t().contiguous()


def _constants(weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window) -> dict:
    names = 'SH', 'SW', 'PH', 'PW', 'DH', 'DW', 'KH', 'KW'
    values = (*window.stride, *window.padding, *window.dilation, *weight.shape[1:])
    return dict(zip(names, values, strict=True), DEGREE=len(weight) - 1, BASE=base_weight is not None, SQUASH=squash,
                BLOCK=BLOCK)


@triton.jit
def _tanh(x):
    """With a relative error below 3e-7, also near zero."""
    u = x * x
    near = ((-0.00661056002254598 * u + 0.021277505801911456) * u - 0.053895319809910344) * u + 0.13332935866132184
    near = x + x * u * (near * u - 0.3333332624744682)
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0, -far, far))


@triton.jit
def _places(start, count, height, width, BLOCK: tl.constexpr):
    """Of BLOCK elements from index `start` on: the first plane, then planes after it, row, column, and existence."""
    plane = start // (height * width)
    index = (start - plane * height * width).to(tl.int32) + tl.arange(0, BLOCK)
    return plane, index // (height * width), index // width % height, index % width, start + tl.arange(0, BLOCK) < count


@triton.jit
def _tap_of_input(x, plane, planes, row, column, there, height, width, kh, kw, SH: tl.constexpr, SW: tl.constexpr,
                  PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr):
    """What the tap (kh, kw) of the given outputs meets."""
    r, c = row * SH - PH + kh * DH, column * SW - PW + kw * DW
    there = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
    return tl.load(x + plane * height * width + (planes * height + r) * width + c, there, 0.0).to(tl.float32)


@triton.jit(do_not_specialize=['count', 'height', 'width', 'out_height', 'out_width'])
def _forward(x, coefficients, constant, y, count, height, width, out_height, out_width,
             SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
             DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
             SQUASH: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    plane, planes, row, column, there = _places(start, count, out_height, out_width, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32) + tl.load(constant)
    for tap in range(KH * KW):
        c = coefficients + tap * (DEGREE + BASE)
        v = _tap_of_input(x, plane, planes, row, column, there, height, width, tap // KW, tap % KW, SH, SW, PH, PW, DH,
                          DW)
        t = _tanh(v) if SQUASH else v
        value = tl.zeros((BLOCK,), tl.float32)
        for n in tl.static_range(DEGREE):
            value = (value + tl.load(c + DEGREE - 1 - n)) * t
        if BASE:
            value += tl.load(c + DEGREE) * v
        total += value
    tl.store(y + start + tl.arange(0, BLOCK), total.to(y.dtype.element_ty), there)


@triton.jit(do_not_specialize=['count', 'height', 'width', 'out_height', 'out_width'])
def _backward_input(x, coefficients, grad, grad_x, count, height, width, out_height, out_width,
                    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
                    DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
                    SQUASH: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    plane, planes, row, column, there = _places(start, count, height, width, BLOCK)
    v = tl.load(x + start + tl.arange(0, BLOCK), there, 0.0).to(tl.float32)
    t = _tanh(v) if SQUASH else v
    through = tl.zeros((BLOCK,), tl.float32)  # the polynomials
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in range(KH * KW):
        c = coefficients + tap * (DEGREE + BASE)
        r, k = row + PH - tap // KW * DH, column + PW - tap % KW * DW
        met = there & (r >= 0) & (r % SH == 0) & (r // SH < out_height)
        met = met & (k >= 0) & (k % SW == 0) & (k // SW < out_width)
        g = tl.load(grad + plane * out_height * out_width + (planes * out_height + r // SH) * out_width + k // SW, met,
                    0.0).to(tl.float32)
        value = tl.zeros((BLOCK,), tl.float32)
        for n in tl.static_range(DEGREE):
            value = value * t + (DEGREE - n) * tl.load(c + DEGREE - 1 - n)
        through += value * g
        if BASE:
            total += tl.load(c + DEGREE) * g
    total += through * (1.0 - t * t) if SQUASH else through
    tl.store(grad_x + start + tl.arange(0, BLOCK), total.to(grad_x.dtype.element_ty), there)


@triton.jit(do_not_specialize=['count', 'blocks', 'height', 'width', 'out_height', 'out_width'])
def _backward_weight(x, grad, sums, count, blocks, height, width, out_height, out_width,
                     SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
                     DW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DEGREE: tl.constexpr, BASE: tl.constexpr,
                     SQUASH: tl.constexpr, BLOCK: tl.constexpr, TERMS: tl.constexpr):
    tap, chunk = tl.program_id(0), tl.program_id(1)  # all taps of a chunk run at about the same time
    term = tl.arange(0, TERMS)
    total = tl.zeros((TERMS,), tl.float32)  # of the outputs' gradients times 1, t, t^2, ...; the last one: times x
    for block in range(blocks):
        start = (chunk.to(tl.int64) * blocks + block) * BLOCK
        plane, planes, row, column, there = _places(start, count, out_height, out_width, BLOCK)
        v = _tap_of_input(x, plane, planes, row, column, there, height, width, tap // KW, tap % KW, SH, SW, PH, PW, DH,
                          DW)
        g = tl.load(grad + start + tl.arange(0, BLOCK), there, 0.0).to(tl.float32)
        if BASE:
            total += tl.where(term == TERMS - 1, tl.sum(g * v, 0), 0.0)
        total += tl.where(term == 0, tl.sum(g, 0), 0.0)
        t = _tanh(v) if SQUASH else v
        for n in tl.static_range(DEGREE):
            g = g * t
            total += tl.where(term == n + 1, tl.sum(g, 0), 0.0)
    tl.store(sums + (chunk * KH * KW + tap) * TERMS + term, total)
