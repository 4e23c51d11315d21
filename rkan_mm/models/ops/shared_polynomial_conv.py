"""The convolution of per-tap polynomials with one kernel for all channels, in the fastest form there is."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from .compiled import is_transformed
from .shared_polynomial_conv_torch import MAX_DEGREE, Window, identity, shared_polynomial_conv2d_torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNELS = dict(cpu='shared_polynomial_conv_cpu', cuda='shared_polynomial_conv_triton')


def shared_polynomial_conv2d(x: Tensor,
                             weight: Tensor,
                             base_weight: Tensor | None = None,
                             normalize: Callable[[Tensor], Tensor] = torch.tanh,
                             base_act: Callable[[Tensor], Tensor] | None = None,
                             stride: tuple[int, int] = (1, 1),
                             padding: tuple[int, int] = (0, 0),
                             dilation: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Sum over taps `p` of :math:`w_p a(x_p) + \sum_{n=0}^d c_{n,p} u(x_p)^n`, for each channel alone, all alike.

    Where a kernel of this package serves (single or half precision, ``normalize`` tanh or :func:`identity`, no
    ``base_act``, no tracing, compiling or transform under way), backward needs the input and nothing else, and all is
    computed in single precision. Elsewhere it is :func:`shared_polynomial_conv2d_torch`. ``RKAN_MM_KERNELS=0`` in the
    environment asks for that everywhere.

    Args:
        x: input, (B, C, H, W).
        weight: coefficients `c` of the monomials, constants first, (d + 1, kh, kw).
        base_weight: `w`, (kh, kw).
        normalize: `u`, element-wise, with u(0) = 0.
        base_act: `a`, element-wise, with a(0) = 0; None is the identity.
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`.

    Returns:
        (B, C, H', W'), of the dtype that a convolution of ``x`` has (autocast applies).
    """
    window = Window(stride, padding, dilation)
    plain = base_act is None and normalize in (torch.tanh, identity)
    if plain and not is_transformed():
        kernels = _kernels(x, weight, base_weight, window)
        if kernels is not None:
            run = _SharedPolynomialConv.apply if torch.is_grad_enabled() else _evaluate
            return run(x, weight, base_weight, normalize is torch.tanh, window, kernels)
    return shared_polynomial_conv2d_torch(x, weight, base_weight, normalize, base_act, *window)


def _kernels(x: Tensor, weight: Tensor, base_weight: Tensor | None, window: Window) -> ModuleType | None:
    """The module with kernels for these tensors; None if only PyTorch can do it, or say what is wrong with them."""
    if x.device.type not in KERNELS or not (x.dim() == 4 and x.numel() and 1 < len(weight) <= MAX_DEGREE + 1):
        return None
    dtype = None if _autocast_dtype(x.device.type) else x.dtype  # None: any
    for t in (x, weight, base_weight):
        if t is not None and not (type(t) in (Tensor, nn.Parameter) and t.dtype in DTYPES and t.device == x.device
                                  and t.dtype == (dtype or t.dtype)):
            return None
    kernels = _module(KERNELS[x.device.type])
    return kernels if kernels and min(window.output_size(x, weight)) > 0 and kernels.is_there() else None


@functools.cache
def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f'.{name}', __package__)
    except ImportError:  # there is no Triton
        return None


def _autocast_dtype(device: str) -> torch.dtype | None:
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cpu':  # torch < 2.4
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def _evaluate(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window,
              kernels: ModuleType) -> Tensor:
    dtype = _autocast_dtype(x.device.type) or x.dtype
    y = kernels.forward(x, *_folded(weight, base_weight, squash), squash, window, dtype)
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last) if channels_last else y


class _SharedPolynomialConv(torch.autograd.Function):
    """Of the values of the forward pass, the input alone is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window,
                kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, weight, base_weight)
        ctx.squash, ctx.window, ctx.kernels = squash, window, kernels
        return _evaluate(x.detach(), weight, base_weight, squash, window, kernels)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, base_weight = inputs = ctx.saved_tensors
        squash, window = ctx.squash, ctx.window
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph: a second derivative may follow
            return *_differentiable_backward(inputs, needed, squash, window, grad), None, None, None
        grads = ctx.kernels.backward(x.detach(), *_folded(weight, base_weight, squash), squash, window, grad, needed[0],
                                     any(needed[1:]))
        if not squash and needed[2]:
            grads = *grads[:2], grads[1][1]
        grads = [g.to(t.dtype) if need else None for g, t, need in zip(grads, inputs, needed, strict=True)]
        return *grads, None, None, None


def _folded(weight: Tensor, base_weight: Tensor | None, squash: bool) -> tuple[Tensor, Tensor | None]:
    """The weights for kernels; without a normalisation, the base branch is a part of the linear term."""
    weight, base_weight = (None if t is None else t.detach().float().contiguous() for t in (weight, base_weight))
    if base_weight is None or squash:
        return weight, base_weight
    return torch.cat([weight[:1], weight[1:2] + base_weight, weight[2:]]), None


def _differentiable_backward(inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...], squash: bool,
                             window: Window, grad: Tensor) -> list[Tensor | None]:
    """The gradients by PyTorch, as functions of the inputs and of ``grad``."""
    with torch.autocast(grad.device.type, enabled=False):
        x, *weights = (None if t is None else t.float() for t in inputs)
        y = shared_polynomial_conv2d_torch(x, *weights, torch.tanh if squash else identity, None, *window)
        grads = iter(torch.autograd.grad(y.to(grad.dtype), [t for t, need in zip(inputs, needed, strict=True) if need],
                                         grad, create_graph=True))
    return [next(grads) if need else None for need in needed]
