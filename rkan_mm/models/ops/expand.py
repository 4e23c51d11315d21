"""Every element of a tensor to the values of its KAN functions, by a compiled kernel that keeps only the input."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .compiled import is_transformed, load_kernels, pointer

KINDS = dict(polynomial=0, spline1=1, spline2=2, spline3=3, gaussian=4, switch=5)
BASES = dict(none=0, identity=1, silu=2)
MAX_FUNCTIONS = 64


class Functions(NamedTuple):
    """What the kernel needs to know of a basis; see csrc/expand.cpp."""

    kind: str
    count: int
    points: Tensor
    """(3, F) coefficients of a recurrence, or (grids, F) middles of functions."""
    inverse: Tensor | None = None
    """(grids,) inverse widths."""


def can_expand(x: Tensor, functions: Functions | None) -> bool:
    """Whether there is a compiled kernel for this input and these functions."""
    if functions is None or functions.count > MAX_FUNCTIONS or x.dtype != torch.float32 or x.device.type != 'cpu':
        return False
    return not is_transformed() and load_kernels('expand.cpp', _is_right) is not None


def expand(x: Tensor, plain: Callable[..., Tensor], functions: Functions, base: str, squash: bool, centre: bool,
           own: bool = False) -> Tensor:
    """Values of all functions of u(x), u = tanh or nothing, behind that of a base function of x itself.

    Args:
        x: (B, C, N) with a grid for each channel or for all; with ``own`` (B, N), where each element may have its own.
        plain: the same in PyTorch, called as ``plain(x, None, 1, centre)``, for second derivatives.
        functions: which.
        base: ``'none'``, ``'identity'`` or ``'silu'``.
        squash: whether u is tanh.
        centre: whether each function's value at u = 0 is subtracted.
        own: see ``x``.

    Returns:
        (B, C, P, N), or (B, P, N) with ``own``.
    """
    return _Expand.apply(x, plain, functions, base, squash, centre, own)


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, plain, functions, base, squash, centre, own):
        ctx.plain, ctx.centre, ctx.own = plain, centre, own
        x = x.contiguous()
        planes = functions.count + (base != 'none')
        out = x.new_empty(*x.shape[:-1], planes, x.shape[-1])
        ctx.save_for_backward(x)
        ctx.call = _arguments(x, functions, base, squash, centre, own)
        points, inverse, numbers, threads, _ = ctx.call
        library = load_kernels('expand.cpp', _is_right)
        library.expand_forward(pointer(x), points, inverse, pointer(out), numbers, threads)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: a second derivative may follow
            values = ctx.plain(x, None, 1, ctx.centre)
            values = values.transpose(1, 2) if ctx.own else values
            return *torch.autograd.grad(values, x, grad, create_graph=True), *[None] * 6
        grad, result = grad.contiguous(), torch.empty_like(x)
        points, inverse, numbers, threads, _ = ctx.call
        library = load_kernels('expand.cpp', _is_right)
        library.expand_backward(pointer(x), points, inverse, pointer(grad), pointer(result), numbers, threads)
        return result, *[None] * 6


def _arguments(x: Tensor, functions: Functions, base: str, squash: bool, centre: bool, own: bool) -> tuple:
    """The kernel's arguments but for the arrays of x and y, and the tensors behind them, to keep them alive."""
    points, inverse = functions.points, functions.inverse
    grids = 1 if inverse is None else len(inverse)
    if own and grids > 1:
        points, grids = points.T, 0  # elements last
    points = points.float().contiguous()
    inverse = None if inverse is None else inverse.float().contiguous()
    rows = x.numel() // max(1, x.shape[-1])
    numbers = (ctypes.c_int64 * 8)(KINDS[functions.kind], rows, x.shape[-1], functions.count, BASES[base], grids,
                                   squash, centre)
    return pointer(points), pointer(inverse), numbers, ctypes.c_int64(torch.get_num_threads()), (points, inverse)


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a small case comes out as it should: Chebyshev polynomials of tanh, and SiLU."""
    x = torch.linspace(-9, 9, 61)
    out = x.new_empty(3, 61)
    points, inverse, numbers, _, _ = _arguments(x, Functions('polynomial', 2, torch.tensor([[1.0, 2], [0, 0], [0, 1]])),
                                                'silu', True, False, False)
    library.expand_forward(pointer(x), points, inverse, pointer(out), numbers, ctypes.c_int64(1))
    t = x.tanh()
    return torch.allclose(out, torch.stack([x * x.sigmoid(), t, 2 * t * t - 1]), rtol=1e-5, atol=1e-6)
