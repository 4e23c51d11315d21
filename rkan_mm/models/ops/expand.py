"""Every element of a tensor to the values of its KAN functions, by a compiled kernel that keeps only the input."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .compiled import load_kernels
from .definition import expand_by_definition
from .functions import BASES, KINDS, Functions
from .gate import FLOATS, autocast_dtype, gradients, pointer, readable
from .optional import optional_module

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_FUNCTIONS = 64


def can_expand(x: Tensor, functions: Functions | None, channels: int) -> bool:
    """Whether there is a compiled kernel for this input and these functions; ``channels`` is what x has of them."""
    if functions is None or functions.count > MAX_FUNCTIONS or not _readable(x) or not functions.fit(channels):
        return False
    if x.is_cuda:
        return (readable(*functions.arrays, dtypes=DTYPES, device='cuda')
                and optional_module('expand_triton') is not None)
    return (readable(functions.points, functions.inverse, dtypes=FLOATS)
            and load_kernels('expand.cpp', _is_right) is not None)


def _readable(*tensors: Tensor) -> bool:
    if tensors[0].is_cuda:
        return readable(*tensors, dtypes=DTYPES, device='cuda')
    return readable(*tensors)


def expand(x: Tensor, plain: Callable[..., Tensor], functions: Functions, base: str, squash: bool, centre: bool,
           own: bool = False) -> Tensor:
    """Values of all functions of u(x), u = tanh or nothing, behind that of a base function of x itself.

    Args:
        x: (B, C, N) with a grid for each channel or for all; with ``own`` (B, N), where each element may have its own.
        plain: the same in PyTorch, called as ``plain(x, None, 1, centre)``, where a GPU has no such kernel.
        functions: which.
        base: ``'none'``, ``'identity'`` or ``'silu'``.
        squash: whether u is tanh.
        centre: whether each function's value at u = 0 is subtracted.
        own: see ``x``.

    Returns:
        (B, C, P, N), or (B, P, N) with ``own``. On a GPU of the dtype of autocast.
    """
    if not x.is_cuda:
        return _Expand.apply(x.contiguous(), functions, base, squash, centre, own)
    setting, dtype = (base, squash, centre), autocast_dtype('cuda') or x.dtype
    kernels = optional_module('expand_triton')
    if not kernels.is_there(x, functions, setting, dtype):
        values = plain(x, None, 1, centre)
        return values.transpose(1, 2) if own else values
    if torch.is_grad_enabled() and x.requires_grad:
        return _ExpandOnGpu.apply(x, functions, setting, dtype)
    return kernels.forward(x, functions, setting, dtype)


def _gradient_by_pytorch(x: Tensor, functions: Functions, base: str, squash: bool, centre: bool,
                         grad: Tensor) -> Tensor | None:
    """In single precision, of the functions that there were in the forward pass: a layer may have others by now."""
    def plain(x: Tensor) -> Tensor:
        return expand_by_definition(x.float(), functions, base, squash, centre).to(grad.dtype)

    return gradients(plain, [x], [True], grad)[0]


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, functions, base, squash, centre, own):
        points, inverse = _arrays(functions, own)
        ctx.functions = functions
        ctx.call = _Call(functions.kind, functions.count, base, squash, centre, own)
        ctx.save_for_backward(x, points, inverse)
        out = x.new_empty(*x.shape[:-1], functions.count + (base != 'none'), x.shape[-1])
        ctx.call(load_kernels('expand.cpp', _is_right).expand_forward, x, points, inverse, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, points, inverse = ctx.saved_tensors
        if torch.is_grad_enabled() or not readable(x, points, inverse, grad):
            found = _gradient_by_pytorch(x, ctx.functions, *ctx.call[2:5], grad)
            return found, *[None] * 5
        # what was saved may lie in another way, if somebody's hooks have packed it
        x, points, inverse, grad = (t if t is None else t.contiguous() for t in (x, points, inverse, grad))
        result = torch.empty_like(x)
        ctx.call(load_kernels('expand.cpp', _is_right).expand_backward, x, points, inverse, grad, result)
        return result, *[None] * 5


class _ExpandOnGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, functions, setting, dtype):
        ctx.functions, ctx.setting = functions, setting
        ctx.save_for_backward(x, *functions.arrays)
        return optional_module('expand_triton').forward(x, functions, setting, dtype)

    @staticmethod
    def backward(ctx, grad):
        x, *arrays = ctx.saved_tensors
        if torch.is_grad_enabled() or not readable(x, *arrays, grad, dtypes=DTYPES, device=x.device.type):
            return _gradient_by_pytorch(x, ctx.functions, *ctx.setting, grad), *[None] * 3
        functions = ctx.functions.with_arrays(arrays)
        return optional_module('expand_triton').backward(x, functions, ctx.setting, grad), *[None] * 3


class _Call(NamedTuple):
    """A call of the kernel but for its arrays."""

    kind: str
    count: int  # type: ignore[assignment]  # hides tuple.count
    base: str
    squash: bool
    centre: bool
    own: bool

    def __call__(self, kernel: Callable, x: Tensor, points: Tensor, inverse: Tensor | None, *others: Tensor) -> None:
        """Run ``kernel``; of the others the first has a plane for each function, a second one the shape of x."""
        count, elements, size, grids = self.count, x.numel(), x.shape[-1], 1 if inverse is None else len(inverse)
        planes = count + (self.base != 'none')
        if self.own and grids > 1:
            grids = 0  # one for each element
        numbers = (ctypes.c_int64 * 8)(KINDS[self.kind], elements // size, size, count, BASES[self.base], grids,
                                       self.squash, self.centre)
        kernel(pointer(x, elements), pointer(points, (3 if inverse is None else grids or size) * count),
               pointer(inverse, grids or size),
               *(pointer(each, n * elements) for each, n in zip(others, (planes, 1), strict=False)), numbers,
               ctypes.c_int64(torch.get_num_threads()))


def _arrays(functions: Functions, own: bool) -> tuple[Tensor, Tensor | None]:
    """The points and inverse widths as the kernel reads them; elements last if each has a grid of its own."""
    points, inverse = functions.points, functions.inverse
    if own and inverse is not None and len(inverse) > 1:
        points = points.T
    return points.float().contiguous(), None if inverse is None else inverse.float().contiguous()


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a small case comes out as it should: Chebyshev polynomials of tanh, and SiLU."""
    x = torch.linspace(-9, 9, 61, dtype=torch.float32)
    out = x.new_empty(3, 61)
    steps = x.new_tensor([[1, 2], [0, 0], [0, 1]])
    _Call('polynomial', 2, 'silu', True, False, False)(library.expand_forward, x, steps, None, out)
    t = x.tanh()
    return torch.allclose(out, torch.stack([x * x.sigmoid(), t, 2 * t * t - 1]), rtol=1e-5, atol=1e-6)
