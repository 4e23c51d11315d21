"""The convolution of per-tap polynomials with one kernel for all channels, by the compiled kernels of this package."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from .compiled import load_kernels, pointer
from .shared_polynomial_conv_torch import Window, identity, shared_polynomial_conv2d_torch

MAX_DEGREE = 6
SOURCE = 'shared_polynomial_conv.cpp'


def is_there() -> bool:
    return load_kernels(SOURCE, _is_right) is not None


def forward(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window) -> Tensor:
    """See :func:`shared_polynomial_conv2d`, with u = tanh if ``squash``, else the identity.

    All tensors are in single precision, on the CPU, and contiguous.
    """
    return _forward(load_kernels(SOURCE, _is_right), x, weight, base_weight, squash, window)


def backward(x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool, window: Window, grad: Tensor,
             for_input: bool, for_weights: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``x``, ``weight`` and ``base_weight``, given that of the output."""
    return _backward(load_kernels(SOURCE, _is_right), x, weight, base_weight, squash, window, grad, for_input,
                     for_weights)


def _forward(kernels: ctypes.CDLL, x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool,
             window: Window) -> Tensor:
    size = window.output_size(x, weight)
    y = x.new_empty(*x.shape[:2], *size)
    kernels.shared_polynomial_conv_forward(pointer(x), pointer(weight), pointer(base_weight), pointer(y),
                                           _numbers(x.shape, weight.shape, size, squash, window),
                                           ctypes.c_int64(torch.get_num_threads()))
    return y


def _backward(kernels: ctypes.CDLL, x: Tensor, weight: Tensor, base_weight: Tensor | None, squash: bool,
              window: Window, grad: Tensor, for_input: bool,
              for_weights: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad_x = torch.empty_like(x) if for_input else None
    grad_weight = torch.empty_like(weight) if for_weights else None
    grad_base = torch.empty_like(base_weight) if for_weights and base_weight is not None else None
    kernels.shared_polynomial_conv_backward(pointer(x), pointer(weight), pointer(base_weight), pointer(grad),
                                            pointer(grad_x), pointer(grad_weight), pointer(grad_base),
                                            _numbers(x.shape, weight.shape, grad.shape[2:], squash, window),
                                            ctypes.c_int64(torch.get_num_threads()))
    return grad_x, grad_weight, grad_base


@functools.lru_cache(maxsize=256)
def _numbers(shape: torch.Size, weight_shape: torch.Size, size: tuple[int, int], squash: bool,
             window: Window) -> ctypes.Array:
    numbers = [shape[0] * shape[1], weight_shape[0] - 1, squash, *shape[2:], *size, *weight_shape[1:], *window.stride,
               *window.padding, *window.dilation]
    return (ctypes.c_int64 * len(numbers))(*map(int, numbers))


def _is_right(kernels: ctypes.CDLL) -> bool:
    """Whether freshly compiled kernels agree with PyTorch on a few small inputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for degree, stride, squash in ((2, 1, True), (3, 2, True), (MAX_DEGREE, 3, False)):
        window = Window((stride, stride), (1, 1), (1, 1))
        x, weight, base_weight = random(3, 2, 9, 13), random(degree + 1, 3, 3), random(3, 3) if squash else None
        inputs = [None if t is None else t.double().requires_grad_() for t in (x, weight, base_weight)]
        with torch.enable_grad():
            expected = shared_polynomial_conv2d_torch(*inputs, torch.tanh if squash else identity, None, *window)
        grad = random(*expected.shape)
        expected.backward(grad.double())
        results = (_forward(kernels, x, weight, base_weight, squash, window),
                   *_backward(kernels, x, weight, base_weight, squash, window, grad, True, True))
        for result, right in zip(results, (expected, *(t.grad for t in inputs if t is not None)), strict=False):
            if not (result - right).norm() <= 1e-5 * right.norm():
                return False
    return True
