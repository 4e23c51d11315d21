"""The convolution of per-tap polynomials with one kernel for all channels, by the compiled kernels of this package."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from .compiled import load_kernels
from .gate import pointer
from .shared_polynomial_conv_torch import Window, agrees_with_pytorch

SOURCE = 'shared_polynomial_conv.cpp'
GROUP = 16
"""The kernels take channels_last as it is for multiples of so many channels: `kGroup` in the C++ source."""


def is_there() -> bool:
    return _kernels() is not None


def _kernels() -> Any:
    return load_kernels(SOURCE, _is_right)


def forward(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window,
            dtype: torch.dtype) -> Tensor:
    """See :func:`shared_polynomial_conv2d`, with u = tanh if ``squash``, else the identity, and an output in ``dtype``.

    The weights are contiguous and in single precision. The output lies in memory as ``x`` does.
    """
    return _forward(_kernels(), x, weight, base_weight, squash, window, dtype)


def backward(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window, grad: Tensor,
             for_input: bool, for_weights: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``x``, ``weight`` and ``base_weight``, given that of the output."""
    return _backward(_kernels(), x, weight, base_weight, squash, window, grad, for_input,
                     for_weights)


def _is_right(kernels: ctypes.CDLL) -> bool:
    return agrees_with_pytorch(functools.partial(_forward, kernels), functools.partial(_backward, kernels), 'cpu')


def _forward(kernels: ctypes.CDLL, x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool,
             window: Window, dtype: torch.dtype) -> Tensor:
    layout, size = _layout(x), window.output_size(x, weight)
    x = x.float().contiguous(memory_format=layout)
    y = torch.empty(*x.shape[:2], *size, dtype=x.dtype, device=x.device, memory_format=layout)
    _call(kernels, False, layout, squash, window, x, weight, base_weight, y)
    return y.to(dtype)


def _backward(kernels: ctypes.CDLL, x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool,
              window: Window, grad: Tensor, for_input: bool,
              for_weights: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    layout = _layout(x)
    x, grad = (t.float().contiguous(memory_format=layout) for t in (x, grad))
    grad_x = torch.empty_like(x) if for_input else None
    grad_weight = torch.empty_like(weight) if for_weights else None
    grad_base = torch.empty_like(base_weight) if for_weights and base_weight is not None else None
    _call(kernels, True, layout, squash, window, x, weight, base_weight, grad, grad_x, grad_weight, grad_base)
    return grad_x, grad_weight, grad_base


def _layout(x: Tensor) -> torch.memory_format:
    apart = x.is_contiguous() or x.shape[1] % GROUP or not x.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if apart else torch.channels_last


def _call(kernels: ctypes.CDLL, backward: bool, layout: torch.memory_format, squash: bool, window: Window, x: Tensor,
          weight: Tensor, base_weight: Tensor | None, y: Tensor, *gradients: Tensor | None) -> None:
    """Run the forward pass into y, or the backward pass with the gradient y into the others."""
    shape, weight_shape, size = x.shape, weight.shape, window.output_size(x, weight)
    numbers, floats = _numbers(kernels, backward, shape, layout, weight_shape, size, squash, window)
    pixels, taps, threads = shape[0] * shape[1], weight_shape[1] * weight_shape[2], torch.get_num_threads()
    counts = pixels * shape[2] * shape[3], weight_shape[0] * taps, taps
    scratch = x.new_empty(threads * floats)
    kernel = kernels.shared_polynomial_conv_backward if backward else kernels.shared_polynomial_conv_forward
    kernel(*map(pointer, (x, weight, base_weight), counts), pointer(y, pixels * size[0] * size[1]),
           *map(pointer, gradients, counts), pointer(scratch, threads * floats), numbers, ctypes.c_int64(threads))


@functools.lru_cache(maxsize=256)
def _numbers(kernels: ctypes.CDLL, backward: bool, shape: torch.Size, layout: torch.memory_format,
             weight_shape: torch.Size, size: tuple[int, int], squash: bool,
             window: Window) -> tuple[ctypes.Array, int]:
    """What the C++ source calls `numbers`, and the floats of scratch memory that a thread needs."""
    values = [shape[0] * shape[1], shape[1] if layout is torch.channels_last else 1, weight_shape[0] - 1, squash,
               *shape[2:], *size, *weight_shape[1:], *window.stride, *window.padding, *window.dilation]
    numbers = (ctypes.c_int64 * len(values))(*map(int, values))
    kernels.shared_polynomial_conv_scratch.restype = ctypes.c_int64
    return numbers, kernels.shared_polynomial_conv_scratch(numbers, ctypes.c_int64(backward))
