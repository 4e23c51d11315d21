"""KAN convolution with B-splines on equal intervals, by a compiled kernel that leaves out the functions which are 0."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .compiled import load_kernels
from .definition import conv_by_definition
from .expand import BASES
from .functions import Functions
from .gate import autocast_dtype, gradients, pointer, readable

MAX_OUTPUTS = 16
"""With more output channels a convolution over all functions is as fast."""


def can_spline_conv(x: Tensor, grid: Tensor, functions: Functions, padding: tuple[int, int],
                    bias: Tensor | None = None) -> bool:
    """Whether there is a compiled kernel for this input and these functions; then ask :func:`fits_spline_conv`.

    Args:
        x: (B, C, H, W).
        grid: the knots, (C, F + order + 1), or of one row for all channels.
        functions: the splines on them.
        padding: of height and width.
        bias: (O,).
    """
    if not readable(x, bias, grid) or autocast_dtype('cpu') is not None:
        return False
    knots = functions.count + int(functions.kind[-1]) + 1
    return (x.dim() == 4 and grid.shape in ((1, knots), (x.shape[1], knots))
            and len(padding) == 2 and all(type(p) is int and p >= 0 for p in padding) and _library() is not None)


def fits_spline_conv(weight: Tensor, x: Tensor, planes: int, padding: tuple[int, int],
                     bias: Tensor | None = None) -> bool:
    """Whether the weights are what the kernel takes, (O, C, planes, kh, kw), and it is worth using."""
    return (readable(weight) and weight.dim() == 5 and weight.shape[1:3] == (x.shape[1], planes)
            and weight.shape[0] <= MAX_OUTPUTS and (bias is None or bias.shape == weight.shape[:1])
            and all(n + 2 * p >= k for n, p, k in zip(x.shape[2:], padding, weight.shape[-2:], strict=True)))


def spline_conv2d(x: Tensor, weight: Tensor, start: Tensor, inverse: Tensor, order: int, base: str,
                  padding: tuple[int, int]) -> Tensor:
    """Sum over taps and input channels of base function and B-splines, stride 1; zeros are padded before the functions.

    Args:
        x: (B, C, H, W).
        weight: (O, C, P, kh, kw), of the base function, if there is one, and of F splines.
        start: first of the F + order + 1 knots, (C,) or (1,).
        inverse: one over the width of an interval, (C,) or (1,).
        order: of the splines, 1 to 3.
        base: ``'none'``, ``'identity'`` or ``'silu'``.
        padding: of height and width.

    Returns:
        (B, O, H + 2 ph - kh + 1, W + 2 pw - kw + 1).
    """
    return _SplineConv.apply(x.contiguous(), weight, start, inverse, order, base, padding)


class _SplineConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, start, inverse, order, base, padding):
        start, inverse = (each.detach().float().contiguous() for each in (start, inverse))
        outputs, channels, planes, kh, kw = weight.shape
        (batch, _, height, width), (ph, pw) = x.shape, padding
        functions = planes - (base != 'none')
        ctx.order, ctx.base, ctx.padding, ctx.grid = order, base, padding, (start, inverse)
        ctx.numbers = (order, batch, channels, height, width, outputs, kh, kw, ph, pw, functions, BASES[base],
                       len(start))
        ctx.save_for_backward(x, weight, start, inverse)
        y = x.new_empty(batch, outputs, height + 2 * ph - kh + 1, width + 2 * pw - kw + 1)
        _call(_library(), torch.get_num_threads(), ctx.numbers, x, _pack(weight, order, base), start, inverse, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, start, inverse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or not readable(x, weight, start, inverse, grad):
            def plain(x: Tensor, weight: Tensor) -> Tensor:
                return _by_definition(x, weight, ctx.grid, ctx.order, ctx.base, ctx.padding)

            return *gradients(plain, (x, weight), wanted, grad), *[None] * 5
        packed, threads = _pack(weight, ctx.order, ctx.base), torch.get_num_threads()
        sums = packed.new_zeros(min(threads, len(x)), *packed.shape)
        # what was saved may lie in another way, if somebody's hooks have packed it
        x, start, inverse, grad = (t.contiguous() for t in (x, start, inverse, grad))
        gx = torch.empty_like(x) if wanted[0] else None
        _call(_library(), threads, ctx.numbers, x, packed, start, inverse, grad, gx, sums)
        return gx, _unpack(sums.sum(0), weight, ctx.order, ctx.base), *[None] * 5


def _by_definition(x: Tensor, weight: Tensor, grid: tuple[Tensor, Tensor], order: int, base: str,
                   padding: tuple[int, int]) -> Tensor:
    start, inverse = grid
    first, splines = (None, weight) if base == 'none' else (weight[:, :, 0], weight[:, :, 1:])
    middles = torch.arange(splines.shape[2], dtype=start.dtype, device=start.device) + (order + 1) / 2
    functions = Functions(f'spline{order}', splines.shape[2], start[:, None] + middles / inverse[:, None], inverse)
    return conv_by_definition(x, splines, first, None, None, None, functions, base, False, False, (1, 1), padding)


def _call(library: ctypes.CDLL, threads: int, numbers: tuple[int, ...], x: Tensor, packed: Tensor, start: Tensor,
          inverse: Tensor, y: Tensor, *gradients: Tensor | None) -> None:
    """Run the forward pass into y; or, where there are arrays for the gradients of x and ``packed``, the backward."""
    order, batch, channels, height, width, outputs, kh, kw, ph, pw, functions, _, grids = numbers
    lanes, parts = library.spline_conv_lanes(), min(threads, batch)  # of the batch, each with memory for one picture
    weights = channels * (functions + 2 * order + 1) * kh * -(-kw * outputs // lanes) * lanes
    counts = (batch * channels * height * width, weights, grids, grids,
              batch * outputs * (height + 2 * ph - kh + 1) * (width + 2 * pw - kw + 1),
              batch * channels * height * width, parts * weights)
    arrays = (x, packed, start, inverse, y, *gradients)
    given = (ctypes.c_int64 * len(numbers))(*numbers)
    scratch = x.new_empty(parts * library.spline_conv_scratch(given, ctypes.c_int64(bool(gradients))))
    kernel = library.spline_conv_backward if gradients else library.spline_conv_forward
    kernel(*map(pointer, arrays, counts), pointer(scratch, scratch.numel()), given, ctypes.c_int64(threads))


def _pack(weight: Tensor, order: int, base: str) -> Tensor:
    """(O, C, P, kh, kw) -> (C, 1 + F + 2 order, kh, kw O and zeros up to whole vectors), taps of a row reversed."""
    packed = weight.detach().permute(1, 2, 3, 4, 0).flip(3).flatten(3)
    lanes = _library().spline_conv_lanes()
    packed = F.pad(packed, (0, -packed.shape[3] % lanes))
    first, splines = (packed[:, :1], packed[:, 1:]) if base != 'none' else (torch.zeros_like(packed[:, :1]), packed)
    return torch.cat([first, F.pad(splines, (0, 0, 0, 0, order, order))], 1).contiguous()


def _unpack(packed: Tensor, like: Tensor, order: int, base: str) -> Tensor:
    """Back from `_pack`."""
    outputs, channels, _, kh, kw = like.shape
    splines = packed[:, 1 + order:packed.shape[1] - order]
    planes = splines if base == 'none' else torch.cat([packed[:, :1], splines], 1)
    planes = planes[..., :kw * outputs].reshape(channels, -1, kh, kw, outputs)
    return planes.flip(3).permute(4, 0, 1, 2, 3).contiguous()


def _library() -> Any:
    return load_kernels('spline_conv.cpp', _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a small case comes out as it should: the splines of a grid sum to 1."""
    library.spline_conv_lanes.restype = library.spline_conv_scratch.restype = ctypes.c_int64
    x = torch.linspace(-0.9, 0.9, 35, dtype=torch.float32).reshape(1, 1, 5, 7)
    packed = x.new_zeros(1, 13, 1, library.spline_conv_lanes())
    packed[:, 0, :, 0], packed[:, 4:10, :, 0] = 2.0, 3.0
    y = torch.empty_like(x)
    knots = x.new_tensor([-4]), x.new_tensor([1])  # -4, ..., 5
    _call(library, 1, (3, 1, 1, 5, 7, 1, 1, 1, 0, 0, 6, 1, 1), x, packed, *knots, y)
    return torch.allclose(y, 2 * x + 3, atol=1e-5)
