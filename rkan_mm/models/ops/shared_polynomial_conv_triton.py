"""The convolution of per-tap polynomials with one kernel for all channels, by Triton kernels.

The parameters are read as a layer holds them: scaler times coefficients and the change to monomials happen in the
kernels, so that a forward pass is one launch and never uses coefficients that are out of date. Both memory formats are
taken as they are. Sizes are arguments at run time, so that pictures of another size compile nothing. All is computed in
single precision, and sums are taken in a fixed order: blocks in one kernel, what they gave in double precision in
another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import shared_polynomial_conv_kernels as kernels
from . import shared_polynomial_conv_strip_kernels as strips
from .gate import is_channels_last
from .shared_polynomial_conv_torch import Window, _output_size, changed, identity, shared_polynomial_conv2d_torch
from .triton_launch import HALF, Launch, cdiv, interpreted, is_close, is_right, launch, power_of_2

MAX_TAPS = 9  # whose coefficients find room in registers: such kernels read each input once
MAX_ROWS = 14  # of a strip
BUSY = 1 << 18  # strips times channels that keep a GPU busy: their rows are fewer where it would have less to do
TILE = 512  # elements that a program works on at a time
MAX_CHUNKS = 512  # of the outputs, each with weight gradients of its own
MAX_REGISTERS = 168  # of a thread: left alone, ptxas 12.9 spills some at 80
Parameters = tuple[Any, ...]
"""Coefficients (d + 1, kh, kw); of the base branch, (kh, kw); factors of the coefficients, (kh, kw)."""
Change = tuple[float, ...] | None
"""(d + 1)^2 numbers: row n has what each polynomial has of t^n; None for the monomials themselves."""
Norm = tuple[Tensor, Tensor, Tensor, Tensor, float] | None
"""Of a constant batch norm mean, variance, weight, bias, (C,) each, and what is added to the variance."""


def is_there(x: Tensor, parameters: Parameters, change: Change, squash: bool, window: Window,
             dtype: torch.dtype, act: bool = False, norm: Norm = None) -> bool:
    """Whether the kernels are right on this GPU, in the variant for these arguments."""
    if (act or norm) and parameters[0][0].numel() > MAX_TAPS:
        return False
    weight, base_weight, scaler = parameters
    dtypes = weight.dtype, None if base_weight is None else base_weight.dtype, None if scaler is None else scaler.dtype
    last = is_channels_last(x)
    return is_right(_agrees, x, x.dtype, dtypes, weight.shape, change, squash, window, dtype, last,
                    torch.is_grad_enabled(), _like(x.shape[1]) if last else 5, act,
                    norm and (*(t.dtype for t in norm[:4]), norm[4]))


class _Case(NamedTuple):
    """What calls have in common whose tensors have the same shapes, dtypes and layouts."""

    size: torch.Size
    half: bool
    last: bool
    weight: torch.Size
    base: bool
    scaled: bool
    change: Change
    squash: bool
    window: Window
    act: bool
    eps: float | None
    """of a norm"""
    limits: tuple[int, ...]
    """of this module"""

    @property
    def few(self) -> bool:
        return self.weight[1:].numel() <= MAX_TAPS

    @property
    def heavy(self) -> bool:
        """Whether many inputs are in registers at a time, and more than the hardware's tanh of them is computed."""
        return max(self.window.stride) > 1 and (self.act or not self.half)

    @property
    def out(self) -> tuple[int, ...]:
        return *self.size[:2], *_output_size(self.size[2:], self.weight[1:], self.window)

    @property
    def constants(self) -> dict[str, Any]:
        return _constants(self.weight, self.base, self.squash, self.window, self.half, self.last, self.act)

    @property
    def preparation(self) -> dict[str, Any]:
        return dict(SCALED=self.scaled, CHANGE=self.change)


def _case(x: Tensor, last: bool, parameters: Parameters, change: Change, squash: bool, window: Window, act: bool,
          eps: float | None = None) -> _Case:
    weight, base_weight, scaler = parameters
    return _Case(x.shape, x.dtype in HALF, last, weight.shape, base_weight is not None, scaler is not None, change,
                 squash, window, act, eps, (TILE, MAX_TAPS, MAX_ROWS, BUSY))


# Launches are made once: in Python it takes longer than the kernels on a small input.
@functools.lru_cache(maxsize=256)
def _forward(case: _Case) -> tuple[Launch, tuple[int, ...]]:
    """And the size of the output."""
    out, degree = case.out, case.weight[0] - 1
    numbers = *case.size[2:], *out[2:]
    tiles, extent, tile = (_strips_of_outputs(out, case.last, degree, case.heavy) if case.few
                           else _tiles(out, case.last))
    if not case.few:
        return Launch(kernels.forward, (tiles,), (*extent, *numbers), **tile, **case.constants, **case.preparation), out
    return Launch(strips.forward, (tiles,), (*extent, *numbers, out[1]), NORM=case.eps is not None, EPS=case.eps or 0.0,
                  **tile, **case.constants, **case.preparation), out


@functools.lru_cache(maxsize=256)
def _backward_input(case: _Case) -> Launch:
    tiles, extent, tile = (_strips_of_inputs(case.size, case.last, case.window, case.weight[0] - 1) if case.few
                           else _tiles(case.size, case.last))
    return Launch((strips if case.few else kernels).backward_input, (tiles,),
                  (*extent, *case.size[2:], *case.out[2:]), **tile, **case.constants, **case.preparation)


@functools.lru_cache(maxsize=256)
def _backward_parameters(case: _Case) -> tuple[Launch, tuple[int, int, int], Launch]:
    """Sums of chunks of the output, their size, and how gradients are made of them."""
    degree, taps, out, constants = case.weight[0] - 1, case.weight[1:].numel(), case.out, case.constants
    tiles, extent, tile = (_strips_of_gradients(out, case.last, case.half, degree, case.heavy) if case.few
                           else _tiles(out, case.last))
    each = cdiv(tiles, 2 * MAX_CHUNKS if case.few else MAX_CHUNKS)
    chunks, terms = cdiv(tiles, each), power_of_2(degree + 2)
    kernel, grid = (strips.backward_weight, (chunks,)) if case.few else (kernels.backward_weight, (taps, chunks))
    summing = Launch(kernel, grid, (each, *extent, *case.size[2:], *out[2:]), TERMS=terms, **tile, **constants)
    return summing, (chunks, taps, terms), Launch(kernels.finish, (taps,), (chunks,), TAPS=taps, TERMS=terms,
                                                  DEGREE=degree, BASE=case.base, **case.preparation)


def forward(x: Tensor, parameters: Parameters, change: Change, squash: bool, window: Window,
            dtype: torch.dtype, act: bool = False, norm: Norm = None) -> Tensor:
    """See :func:`shared_polynomial_conv2d`; u = tanh if ``squash``, else the identity. Lies in memory as ``x`` does.

    ``act``, SiLU of the input, and ``norm``, behind all, are for kernels of few taps.
    """
    last = is_channels_last(x)
    x = x if last else x.contiguous()
    case = _case(x, last, parameters, change, squash, window, act, norm and norm[4])
    call, size = _forward(case)
    y = (torch.empty_like(x) if size == x.shape and dtype == x.dtype else
         torch.empty(size, dtype=dtype, device=x.device,
                     memory_format=torch.channels_last if last else torch.contiguous_format))
    weight, *others = _pointers(_contiguous(parameters))
    norms = () if not case.few else (weight,) * 4 if norm is None else _contiguous(norm[:4])
    launch(call, x, weight, *others, y, *norms)
    return y


def backward(x: Tensor, parameters: Parameters, change: Change, squash: bool, window: Window, grad: Tensor,
             for_input: bool, for_parameters: bool, act: bool = False) -> tuple[Tensor | None, ...]:
    """Gradients of ``x`` and of the parameters, given that of the output."""
    last = is_channels_last(x)
    x, parameters = x if last else x.contiguous(), _contiguous(parameters)
    grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    case, grad_x, grads = _case(x, last, parameters, change, squash, window, act), None, (None,) * len(parameters)
    if for_input:
        grad_x = torch.empty_like(x)
        launch(_backward_input(case), x, *_pointers(parameters), grad, grad_x)
    if for_parameters:
        summing, size, finishing = _backward_parameters(case)
        sums = torch.empty(size, dtype=torch.float32, device=x.device)
        launch(summing, x, grad, sums)
        grads = tuple(None if t is None else torch.empty_like(t) for t in parameters)
        launch(finishing, sums, *_pointers(parameters), *_pointers(grads))
    return grad_x, *grads


def prepared(parameters: Parameters, change: Change) -> tuple[Tensor, Tensor | None]:
    """What the kernels make of the parameters: coefficients of the monomials, and of the base branch."""
    weight, base_weight, scaler = parameters
    weight = weight if scaler is None else weight * scaler
    return weight if change is None else changed(weight, change), base_weight


def _agrees(dtype: torch.dtype, dtypes: tuple[torch.dtype | None, ...], shape: tuple[int, ...], change: Change,
            squash: bool, window: Window, out_dtype: torch.dtype, channels_last: bool, training: bool, channels: int,
            act: bool = False, norm: tuple[Any, ...] | None = None, device: str = 'cuda') -> bool:
    """Whether a variant of the kernels gives what PyTorch gives in double precision, on a small input."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    height, width = (d * (k - 1) + 1 + 3 * s for d, k, s in zip(window.dilation, shape[1:], window.stride, strict=True))
    x = random(3, channels, height, width + 2, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    sizes = shape, shape[1:], shape[1:]
    parameters = tuple(None if d is None else random(*s, dtype=d) for s, d in zip(sizes, dtypes, strict=True))
    leaves = [t if t is None else t.double().requires_grad_() for t in (x, *parameters)]
    expected = shared_polynomial_conv2d_torch(F.silu(leaves[0]) if act else leaves[0],
                                              *prepared(tuple(leaves[1:]), change),
                                              torch.tanh if squash else identity, None, *window)
    given: Norm = None
    if norm is not None:
        mean, variance, gamma, beta = (random(channels, dtype=d) for d in norm[:4])
        given = mean, variance.abs(), gamma, beta, norm[4]
        expected = F.batch_norm(expected, mean.double(), variance.abs().double(), gamma.double(), beta.double(),
                                eps=norm[4])
    results, rights = [forward(x, parameters, change, squash, window, out_dtype, act, given)], [expected]
    if training and norm is None:
        grad = random(*expected.shape, dtype=out_dtype)
        grads = backward(x, parameters, change, squash, window, grad, True, True, act)
        results += [t for t in grads if t is not None]
        rights += torch.autograd.grad(expected, [leaf for leaf in leaves if leaf is not None], grad.double())
    # the hardware's tanh, which half precision takes, is right to 2^-11
    tolerance = 4 * 2**-10 if squash and dtype in HALF else 1e-5
    return all(is_close(*pair, tolerance) for pair in zip(results, rights, strict=True))


def _like(channels: int) -> int:
    """A number of channels for which the kernels are compiled in the same way, where channels come last."""
    return channels if channels < 128 else 128 if channels % 16 == 0 else 125


def _contiguous(parameters: Parameters) -> Parameters:
    return tuple(None if t is None else t.contiguous() for t in parameters)


def _pointers(parameters: Parameters) -> list[Tensor]:
    """In the place of what is not there, something that is not looked at."""
    return [parameters[0] if t is None else t for t in parameters]


def _tiles(size: Sequence[int], last: bool) -> tuple[int, tuple[int, int], dict[str, int]]:
    """How a tensor is divided: number of tiles; of lanes and pixels; these of a tile.

    A lane is a plane, or a channel where they come last; pixels are those of a plane, or of all images then.
    """
    batch, channels, height, width = size
    lanes, pixels = (channels, batch * height * width) if last else (batch * channels, height * width)
    inner = power_of_2(min(TILE // 8, lanes if last else pixels))
    tile = (inner, TILE // inner) if last else (TILE // inner, inner)
    return cdiv(lanes, tile[0]) * cdiv(pixels, tile[1]), (lanes, pixels), dict(
        LANES=tile[0], PIXELS=tile[1])


Strips = tuple[int, tuple[int, int, int], dict[str, int]]
"""How pictures are divided: number of tiles; lanes, strips and rows of a strip; what a tile has of them."""


def _strips(like: Sequence[int], last: bool, size: Sequence[int], most: int, columns: int, elements: int,
            degree: int) -> Strips:
    """``elements`` is how many a thread has of each pixel where channels come last and are loaded together."""
    batch, channels = like[:2]
    images, lanes = (batch, channels) if last else (batch * channels, 1)
    across, rows = cdiv(size[1], columns), min(size[0], most)
    while rows > 2 and images * lanes * across * cdiv(size[0], rows) < BUSY:
        rows = cdiv(rows, 2)
    elements = elements if last and degree <= 3 else 1  # else registers would not do
    warps = 2 if elements == 4 else 4
    strips, inner = images * across * cdiv(size[0], rows), min(128, power_of_2(lanes))
    tile = dict(COLUMNS=columns, LANES=inner, STRIPS=32 * warps * elements // inner, num_warps=warps)
    return cdiv(lanes, inner) * cdiv(strips, tile['STRIPS']), (lanes, strips, rows), tile


def _strips_of_outputs(y: Sequence[int], last: bool, degree: int, heavy: bool) -> Strips:
    return _strips(y, last, y[2:], MAX_ROWS, 4 if last else 2, 2 if heavy else 4, degree)


def _strips_of_gradients(grad: Sequence[int], last: bool, half: bool, degree: int, heavy: bool) -> Strips:
    elements = 2 if degree < 3 or (half and not heavy) else 1
    return _strips(grad, last, grad[2:], MAX_ROWS, 2 if heavy and degree > 3 else 4, elements, degree)


def _strips_of_inputs(x: Sequence[int], last: bool, window: Window, degree: int) -> Strips:
    """As many rows and columns of the input go together as the stride has."""
    size = [cdiv(n + p % s, s) for n, p, s in zip(x[2:], window.padding, window.stride, strict=True)]
    columns = max(1, (4 if last else 2) // window.stride[1])
    elements = 4 if degree < 3 or columns < 4 else 2
    return _strips(x, last, size, max(1, MAX_ROWS // (2 * window.stride[0] - 1)), columns, elements, degree)


def _constants(weight: torch.Size, base: bool, squash: bool, window: Window, half: bool, last: bool,
               act: bool) -> dict:
    names = 'SH', 'SW', 'PH', 'PW', 'DH', 'DW', 'KH', 'KW'
    values = (*window.stride, *window.padding, *window.dilation, *weight[1:])
    return dict(zip(names, values, strict=True), DEGREE=weight[0] - 1, BASE=base, SQUASH=squash,
                HARDWARE=half and not interpreted(), maxnreg=MAX_REGISTERS,
                **(dict(ACT=act) if weight[1:].numel() <= MAX_TAPS else dict(LAST=last)))
