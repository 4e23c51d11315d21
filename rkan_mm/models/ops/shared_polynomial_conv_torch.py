"""The convolution of per-tap polynomials with one kernel for all channels, in PyTorch's own operations."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .gate import HALF, autocast_dtype, is_transformed
from .tracing import folded, static_shape

CHUNK_BYTES = 3 << 19
"""Without gradients, a CPU works on parts of the batch of about this size, whose temporaries stay in its caches."""

MAX_DEGREE = 6
"""Of the polynomials that the kernels of this package take: `kMaxDegree` in the C++ source."""

HALF_DEGREE = 4
"""Up to which monomials lose no more in half precision than a convolution does; from there on they cancel."""

MAX_REACH = 128
"""Stride, padding and extent of a kernel that those take: their scratch memory grows with it."""


class Window(NamedTuple):
    """How the taps lie on the input: as in :func:`torch.nn.functional.conv2d`."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """Of an input (B, C, H, W) and kernels (..., kh, kw); less than one where the kernel does not fit."""
        return _output_size(x.shape[2:], weight.shape[-2:], self)

    def is_whole(self) -> bool:
        """Whether it is made of integers: to be asked before a cache, to which 1.0 and True are the same as 1."""
        for pair in self:
            if type(pair) is not tuple:
                return False
            for n in pair:  # a generator would take several times as long
                if type(n) is not int:
                    return False
        return True

    def is_served(self, size: torch.Size, weight: torch.Size) -> bool:
        """Whether the kernels take it on such shapes; PyTorch does what is beyond them, or says what is wrong."""
        return _is_served(size[2:], weight[-2:], self)


def _output_size(size: torch.Size, kernel: torch.Size, window: Window) -> tuple[int, int]:
    height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1
                     for n, k, s, p, d in zip(size, kernel, *window, strict=True))
    return height, width


def serves(size: torch.Size, kernel: torch.Size, window: Window) -> bool:
    """Whether the kernels take a window on these heights and widths; also of symbols, which no cache can keep."""
    if not all(type(n) is int for pair in window for n in pair) or any(len(pair) != 2 for pair in window):
        return False
    if not (min(*window.stride, *window.dilation, *kernel) >= 1 and min(window.padding) >= 0):
        return False
    reach = max(*window.stride, *window.padding, *(d * k for d, k in zip(window.dilation, kernel, strict=True)))
    return reach <= MAX_REACH and min(_output_size(size, kernel, window)) >= 1


_is_served = functools.lru_cache(maxsize=256)(serves)


def changed(weight: Tensor, change: Sequence[float]) -> Tensor:
    """Coefficients of polynomials, (d + 1, kh, kw), to those of the monomials.

    Row n of ``change``, (d + 1)^2 numbers, has what each polynomial has of t^n.
    """
    return torch.einsum('nj,jhw->nhw', weight.new_tensor(change).reshape(len(weight), len(weight)), weight)


def in_each(value: Any, dims: int = 2) -> Any:
    """A stride, padding or dilation as PyTorch's convolutions read it: a single number counts for each dimension.

    A tuple where it is made of such numbers; what else there may be, such as ``padding='same'``, stays as it is.
    """
    if type(value) is tuple and len(value) == dims:  # as nearly all are
        return value
    if isinstance(value, numbers.Integral):
        return value if isinstance(value, bool) else (int(value),) * dims
    if not isinstance(value, (tuple, list)):
        return value
    return tuple(value) * dims if len(value) == 1 and type(value[0]) is int else tuple(value)


def identity(x: Tensor) -> Tensor:
    return x


def shared_polynomial_conv2d_torch(x: Tensor,
                                   weight: Tensor,
                                   base_weight: Tensor | None = None,
                                   normalize: Callable[[Tensor], Tensor] = torch.tanh,
                                   base_act: Callable[[Tensor], Tensor] | None = None,
                                   stride: tuple[int, int] = (1, 1),
                                   padding: tuple[int, int] = (0, 0),
                                   dilation: tuple[int, int] = (1, 1),
                                   constant: bool = False) -> Tensor:
    """:func:`shared_polynomial_conv2d` on every device, in every dtype and under every transform: the oracle.

    For u(0) = 0 the powers of a padded tap are zero, so zero padding of the powers equals padding the input first, and
    the constants (which padded taps have too) collapse into one number. What is left is `d + 1` depthwise convolutions.
    From a degree above `HALF_DEGREE` on they are computed in single precision where the output is in half.

    Here ``weight`` may be (d + 1, G, kh, kw) and ``base_weight`` (G, kh, kw): kernels for G groups of channels.
    """
    dtype = _half_output(x)
    if dtype is not None and static_shape(weight)[0] > HALF_DEGREE + 1:
        return _in_single(x, weight, base_weight, normalize, base_act, Window(stride, padding, dilation), constant,
                          dtype)
    channels = static_shape(x)[1]
    number, base_kernel, *kernels = folded(_depthwise_kernels, weight, base_weight, channels, constant=constant)

    def depthwise(maps: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(maps, kernel, None, stride, padding, dilation, channels)

    def terms(x: Tensor, in_place: bool):
        if base_weight is not None:
            yield depthwise(x if base_act is None else base_act(x), base_kernel)
        u = power = normalize(x)
        yield depthwise(u, kernels[0])
        for n, kernel in enumerate(kernels[1:]):
            power = power.mul_(u) if in_place and n else power * u
            yield depthwise(power, kernel)

    if x.device.type == 'cpu' and not (torch.is_grad_enabled() or is_transformed()):
        rows = max(1, CHUNK_BYTES // max(1, x[:1].numel() * x.element_size()))
        return torch.cat([_sum_in_place(terms(part, True)).add_(number) for part in x.split(rows)])
    total = sum(terms(x, False), number)
    return total if dtype is None else total.to(dtype)  # which the constants of groups make single


def _half_output(x: Tensor) -> torch.dtype | None:
    """The half precision that a convolution of ``x`` would have, None where it has none."""
    dtype = x.dtype if x.dtype == torch.float64 else autocast_dtype(x.device.type) or x.dtype
    return dtype if dtype in HALF else None


def _in_single(x: Tensor, weight: Tensor, base_weight: Tensor | None, normalize: Callable[[Tensor], Tensor],
               base_act: Callable[[Tensor], Tensor] | None, window: Window, constant: bool,
               dtype: torch.dtype) -> Tensor:
    """The form in single precision, of the given dtype; the activation alone is computed as it ever is."""
    device, autocast, given = 'cpu' if x.is_meta else x.device.type, autocast_dtype(x.device.type), x.dtype

    def act(part: Tensor) -> Tensor:
        assert base_act is not None
        with torch.autocast(device, autocast, autocast is not None):
            return base_act(part.to(given)).float()

    with torch.autocast(device, enabled=False):
        return shared_polynomial_conv2d_torch(
            x.float(), weight.float(), None if base_weight is None else base_weight.float(), normalize,
            None if base_act is None else act, *window, constant).to(dtype)


def single_of(weight: Tensor) -> Tensor:
    """Coefficients that become those of monomials, (d + 1, ...), in single precision where half would not do."""
    return weight.float() if weight.dtype in HALF and static_shape(weight)[0] > HALF_DEGREE + 1 else weight


def _depthwise_kernels(weight: Tensor, base_weight: Tensor | None, channels: int) -> tuple[Tensor | None, ...]:
    """The constants' sum; then the base branch's kernel and those of the powers, each (channels, 1, kh, kw)."""
    first, *rest = weight.unbind()
    if weight.dim() == 3:
        return first.sum(), *(None if w is None else w.expand(channels, 1, *w.shape) for w in (base_weight, *rest))
    each = channels // len(first)
    return (first.sum((1, 2)).repeat_interleave(each)[:, None, None],
            *(None if w is None else w.repeat_interleave(each, 0)[:, None] for w in (base_weight, *rest)))


def _sum_in_place(terms) -> Tensor:
    total = next(terms)
    for term in terms:
        total.add_(term)
    return total


def agrees_with_pytorch(forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor | None, ...]],
                        device: str) -> bool:
    """Whether freshly compiled kernels give values and gradients as PyTorch does, on a few small inputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)

    for degree, stride, squash in ((2, 1, True), (3, 2, True), (MAX_DEGREE, 3, False)):
        window = Window((stride, stride), (1, 1), (1, 1))
        x, weight, base_weight = random(3, 2, 9, 13), random(degree + 1, 3, 3), random(3, 3) if squash else None
        inputs: list[Any] = [None if t is None else t.double().requires_grad_() for t in (x, weight, base_weight)]
        with torch.enable_grad():
            expected = shared_polynomial_conv2d_torch(
                inputs[0], inputs[1], inputs[2], torch.tanh if squash else identity, None, *window)
        grad = random(*expected.shape)
        expected.backward(grad.double())
        results = (forward(x, weight, base_weight, squash, window, torch.float32),
                   *backward(x, weight, base_weight, squash, window, grad, True, True))
        for result, right in zip(results, (expected, *(t.grad for t in inputs if t is not None)), strict=False):
            if not (result - right).norm() <= 1e-5 * right.norm():
                return False
    return True
