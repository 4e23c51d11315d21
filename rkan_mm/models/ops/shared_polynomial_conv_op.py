"""The convolution of per-tap polynomials as one operation in training graphs of `torch.compile`, for kernels on a GPU.

Its backward pass keeps the input alone. In inference the compiler's own kernels were faster (docs/gpu.md), so graphs
without gradients get the PyTorch form; so does an exported program, which is to run where this package is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .compiled import kernels_wanted
from .gate import autocast_dtype, is_channels_last
from .shared_polynomial_conv_torch import MAX_DEGREE, Window, serves

ARGUMENTS = ('Tensor x, Tensor weight, Tensor? base_weight, Tensor? scaler, float[]? change, bool squash, '
             'int[] window, ScalarType dtype')
EXISTS = hasattr(torch.library, 'register_fake') and hasattr(torch.compiler, 'is_exporting')
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LIBRARY = torch.library.Library('rkan_mm', 'FRAGMENT')
LIBRARY.define(f'shared_polynomial_conv2d({ARGUMENTS}) -> Tensor')
LIBRARY.define(f'shared_polynomial_conv2d_backward({ARGUMENTS}, Tensor grad, bool[] needed) -> Tensor[]')


def is_one_operation(x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None,
                     window: Window) -> bool:
    """Whether the graph under way gets one operation for these tensors, for whose kernels alone it is there."""
    if not (EXISTS and torch.is_grad_enabled() and _is_on_gpu(x) and kernels_wanted()) or _is_exporting():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if x.dim() != 4 or weight.dim() != 3 or not 1 < weight.shape[0] <= MAX_DEGREE + 1 or x.dtype not in DTYPES:
        return False
    autocast = autocast_dtype('cuda')
    for t in (weight, base_weight, scaler):
        if t is not None and not (t.shape[-2:] == weight.shape[1:] and t.device == x.device and t.dtype in DTYPES
                                  and (autocast or t.dtype == x.dtype)):
            return False
    flat = all(t is None or t.dim() == 2 for t in (base_weight, scaler))
    return flat and serves(x.shape[2:], weight.shape[1:], window)


@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    """Asked by the compiler itself: in the eyes of that of torch 2.11 all that it compiles is exported."""
    return torch.compiler.is_exporting()


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def one_operation(x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None,
                  change: Sequence[float] | None, squash: bool, window: Window) -> Tensor:
    """The node; ``change`` has what each polynomial has of the monomials, row by row."""
    return torch.ops.rkan_mm.shared_polynomial_conv2d(x, weight, base_weight, scaler, change, squash,
                                                      [n for pair in window for n in pair],
                                                      autocast_dtype('cuda') or x.dtype)


def window_of(numbers: Sequence[int]) -> Window:
    """Of the numbers that a node has in its place."""
    return Window((numbers[0], numbers[1]), (numbers[2], numbers[3]), (numbers[4], numbers[5]))


def implement(forward: Callable[..., Tensor], backward: Callable[..., list[Tensor]]) -> None:
    """Say what the two operations do: their arguments are those of the schemas."""
    LIBRARY.impl('shared_polynomial_conv2d', forward, 'CompositeExplicitAutograd')
    LIBRARY.impl('shared_polynomial_conv2d_backward', backward, 'CompositeExplicitAutograd')
    if EXISTS:
        torch.library.register_fake('rkan_mm::shared_polynomial_conv2d', _size, lib=LIBRARY)
        torch.library.register_fake('rkan_mm::shared_polynomial_conv2d_backward', _sizes, lib=LIBRARY)
        torch.library.register_autograd('rkan_mm::shared_polynomial_conv2d', _gradients, setup_context=_keep,
                                        lib=LIBRARY)


def layout_of(x: Tensor) -> torch.memory_format:
    """How outputs and gradients of an input lie in memory, whatever computes them: a compiled graph relies on it."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def _size(x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None, change: Sequence[float] | None,
          squash: bool, window: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = *x.shape[:2], *window_of(window).output_size(x, weight)
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=layout_of(x))


def _sizes(x: Tensor, *others: Any) -> list[Tensor]:
    needed, parameters = others[-1], others[:3]
    return [torch.empty_like(t, memory_format=layout_of(t) if t is x else torch.contiguous_format)
            for t, need in zip((x, *parameters), needed, strict=True) if need and t is not None]


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [*ctx.needs_input_grad[:4]]
    found = iter(torch.ops.rkan_mm.shared_polynomial_conv2d_backward(*ctx.saved_tensors, *ctx.rest, grad, needed))
    return *(next(found) if need else None for need in needed), *[None] * len(ctx.rest)
