"""KAN convolution and linear layer in one go, by Triton kernels: functions in registers, multiplied on tensor cores.

What a layer computes is a convolution of planes, a plane for the base branch and one for each function. Here a tile of
the input becomes a tile of a plane in registers and goes to `tl.dot`; no plane is ever in memory, neither of values nor
of gradients. Values are computed in single precision, rounded once to the dtype of the product, and summed in single
precision, in a fixed order. Padded taps need no care: the functions are computed of the zeros that lie there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import fused_kernels as kernels
from . import fused_weights
from .definition import conv_by_definition
from .functions import BASES, KINDS, Functions, example
from .gate import is_channels_last
from .triton_launch import HALF, Launch, cdiv, interpreted, is_close, is_right, launch, power_of_2

PROGRAMS = 512
"""The gradient of the weights divides the pixels into as many chunks as give about so many programs."""
MAX_CHUNKS = 64
WIDEST = (1 << 31) - 1024  # pixels that 32 bits can count, and a tile beyond them
MAX_WEIGHTS = 1 << 31  # their indices have 32 bits
BLOCK = 256
FORWARD = dict(BM=64, BN=128, BC=16, num_warps=4, num_stages=2, maxnreg=240)
SHARED = 80 << 10  # bytes of a program's tiles of weights, all functions and two stages together: any GPU has so many
BACKWARD_INPUT = dict(BM=64, BN=64, BC=64, num_warps=8, num_stages=3, maxnreg=248)  # left alone, ptxas takes too few
BACKWARD_WEIGHT = dict(BM=64, BN=64, BC=64, num_warps=4, num_stages=3, maxnreg=224)
"""Tiles whose values fit into registers, by the compiler's report: test_triton_compiles.py."""


class Parameters(NamedTuple):
    """Of a layer, as it holds them; the taps are (kh, kw), or are not there."""

    basis_weight: Tensor
    """(out, in, functions, taps)"""
    weight: Tensor | None
    """of the base branch, (out, in, taps)"""
    scaler: Tensor | None
    mask: Tensor | None
    bias: Tensor | None


class Setting(NamedTuple):
    """What else there is to know of a layer."""

    base: str
    """``'none'``, ``'identity'`` or ``'silu'``"""
    squash: bool
    """whether the functions are of tanh(x)"""
    constant: bool
    """whether the first function is 1 everywhere, and not among `Functions`"""
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def output_size(self, x: Tensor) -> tuple[int, int]:
        """Of an input (B, C, H, W); less than one where the kernel does not fit."""
        height, width = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], *self[3:], strict=True))
        return height, width


def is_there(x: Tensor, parameters: Parameters, functions: Functions, setting: Setting, dtype: torch.dtype) -> bool:
    """Whether the kernels are right on this GPU, in the variant for these arguments."""
    outputs, inputs, count = parameters.basis_weight.shape[:3]
    if parameters.basis_weight.numel() // count * (count + 1) >= MAX_WEIGHTS:
        return False
    return is_right(_agrees, x, x.dtype, x.is_contiguous(), tuple(None if t is None else t.dtype for t in parameters),
                    *(_like(n) for n in (inputs, outputs)), functions.kind, functions.count,
                    tuple(t.dtype for t in functions.arrays), functions.grids > 1, functions.steps, setting, dtype,
                    _precision(dtype), torch.is_grad_enabled(), _is_flat(x, setting))


def forward(x: Tensor, parameters: Parameters, functions: Functions, setting: Setting, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, O, H', W') of ``dtype``, in which the products are computed, too."""
    parameters = _contiguous(parameters)
    outputs, inputs = parameters.basis_weight.shape[:2]
    last = is_channels_last(x)
    y = torch.empty((len(x), outputs, *setting.output_size(x)), dtype=dtype, device=x.device,
                    memory_format=torch.channels_last if last else torch.contiguous_format)
    if not y.numel():
        return y
    x = _channels_last(x)
    tile, pixels = _fitted(FORWARD, outputs, inputs), y.numel() // outputs
    planes, bias = functions.count + (setting.base != 'none') + setting.constant, parameters.bias
    while planes * tile['BC'] * tile['BN'] * dtype.itemsize * tile['num_stages'] > SHARED and tile['BN'] > 16:
        tile['BN'] //= 2
    tile['num_warps'] *= 1 + (planes > 12)  # whose addresses alone fill the registers
    call = Launch(kernels.forward, (cdiv(pixels, tile['BM']), cdiv(outputs, tile['BN'])),
                  (pixels, inputs, outputs, *x.shape[2:], *y.shape[2:], *x.stride(), *y.stride()),
                  BIAS=bias is not None, CONSTANT=setting.constant, X=_layout(x, setting), Y=_layout(y, setting),
                  **tile, **_constants(x, y, functions, setting, dtype))
    launch(call, x, packed(parameters, setting, dtype), parameters[0] if bias is None else bias,
           *_points(functions, x), y)
    return y


def backward(x: Tensor, parameters: Parameters, functions: Functions, setting: Setting, grad: Tensor, for_input: bool,
             for_parameters: bool) -> tuple[Tensor | None, ...]:
    """Gradients of ``x`` and of the parameters (None for the mask), given that of the output, which has elements."""
    parameters, grad = _contiguous(parameters), _channels_last(grad)
    like, x = x, _channels_last(x)
    constants = _constants(x, grad, functions, setting, grad.dtype)
    grad_x = torch.empty_like(like) if for_input else None
    if for_input:
        _input_gradient(x, parameters, functions, setting, grad, grad_x, constants)
    grads = _parameter_gradients(x, parameters, functions, setting, grad, constants) if for_parameters else (None,) * 5
    return grad_x, *grads


def _input_gradient(x: Tensor, parameters: Parameters, functions: Functions, setting: Setting, grad: Tensor,
                    result: Tensor, constants: dict) -> None:
    (batch, inputs, height, width), outputs = x.shape, grad.shape[1]
    (sh, sw), tile = setting.stride, _fitted(_of_dtype(BACKWARD_INPUT, 'BC', grad), inputs, outputs)
    pixels = batch * cdiv(height, sh) * cdiv(width, sw)
    grid = cdiv(pixels, tile['BM']), cdiv(inputs, tile['BN']), sh * sw
    call = Launch(kernels.backward_input, grid, (batch, inputs, outputs, height, width, *grad.shape[2:], *x.stride(),
                                                 *grad.stride(), *result.stride()),
                  CONSTANT=setting.constant, X=_layout(x, setting), G=_layout(grad, setting),
                  Y=_layout(result, setting), **tile, **constants)
    launch(call, x, packed(parameters, setting, grad.dtype), *_points(functions, x), grad, result)


def _parameter_gradients(x: Tensor, parameters: Parameters, functions: Functions, setting: Setting, grad: Tensor,
                         constants: dict) -> tuple[Tensor | None, ...]:
    inputs, outputs, bias = x.shape[1], grad.shape[1], parameters.bias
    tile, pixels = _fitted(_of_dtype(BACKWARD_WEIGHT, 'BM', grad), outputs, inputs), grad.numel() // outputs
    taps, planes = constants['KH'] * constants['KW'], functions.count + (setting.base != 'none')
    tiles = cdiv(inputs, tile['BC']) * cdiv(outputs, tile['BN'])
    blocks = cdiv(pixels, tile['BM'])
    each = cdiv(blocks, min(blocks, MAX_CHUNKS, cdiv(PROGRAMS, tiles * taps * planes)))
    chunks = cdiv(blocks, each)
    sums = torch.empty(chunks, taps, planes, inputs, outputs, dtype=torch.float32, device=x.device)
    call = Launch(kernels.backward_weight, (tiles, taps * planes, chunks),
                  (pixels, each, inputs, outputs, *x.shape[2:], *grad.shape[2:], *x.stride(), *grad.stride()),
                  X=_layout(x, setting), G=_layout(grad, setting), **tile, **constants)
    launch(call, x, grad, *_points(functions, x), sums)
    total = grad.sum((0, 2, 3), dtype=torch.float32) if setting.constant or bias is not None else sums
    grads = [None if t is None else torch.empty_like(t) for t in parameters[:3]]
    call = Launch(fused_weights.finish, (cdiv(inputs * outputs, BLOCK), taps), (inputs, outputs, chunks),
                  **_flags(parameters, setting))
    launch(call, sums, total, *_pointers(parameters), *(parameters[0] if t is None else t for t in grads))
    return *grads, None, None if bias is None else total.to(bias.dtype)


def packed(parameters: Parameters, setting: Setting, dtype: torch.dtype) -> Tensor:
    """The weights of the planes, (taps, P, in, out): base branch, functions, and the constant one if there is one."""
    outputs, inputs, functions = parameters.basis_weight.shape[:3]
    taps, planes = setting.kernel[0] * setting.kernel[1], functions + (setting.base != 'none')
    result = torch.empty(taps, planes, inputs, outputs, dtype=dtype, device=parameters.basis_weight.device)
    call = Launch(fused_weights.pack, (cdiv(inputs * outputs, BLOCK), taps * planes), (inputs, outputs),
                  **_flags(parameters, setting))
    launch(call, *_pointers(parameters), result)
    return result


def _channels_last(t: Tensor) -> Tensor:
    """Channels side by side: in another layout the addresses of a tile would fill the registers."""
    return t.contiguous(memory_format=torch.channels_last)


def _contiguous(parameters: Parameters) -> Parameters:
    return Parameters(*(None if t is None else t.contiguous() for t in parameters))


def _pointers(parameters: Parameters) -> list[Tensor]:
    """In the place of what is not there, something that is not looked at."""
    return [parameters[0] if t is None else t for t in parameters[:4]]


def _points(functions: Functions, x: Tensor) -> tuple[Tensor, ...]:
    """The arrays of a grid; in the place of what is not there, something that is not looked at."""
    return (*(t.contiguous() for t in functions.arrays), x, x)[:2]


def _flags(parameters: Parameters, setting: Setting) -> dict:
    return dict(TAPS=setting.kernel[0] * setting.kernel[1], BASE=BASES[setting.base], CONSTANT=setting.constant,
                FUNCTIONS=parameters.basis_weight.shape[2] - setting.constant, SCALED=parameters.scaler is not None,
                MASKED=parameters.mask is not None, BLOCK=BLOCK)


def _constants(x: Tensor, y: Tensor, functions: Functions, setting: Setting, dtype: torch.dtype) -> dict:
    names = 'KH', 'KW', 'SH', 'SW', 'PH', 'PW'
    return dict(zip(names, (*setting.kernel, *setting.stride, *setting.padding), strict=True),
                KIND=KINDS[functions.kind], FUNCTIONS=functions.count, KNOTS=functions.knots, STEPS=functions.steps,
                BASE=BASES[setting.base], SQUASH=setting.squash, GRIDS=functions.grids > 1,
                HARDWARE=dtype in HALF and not interpreted(), PRECISION=_precision(dtype),
                FLAT=_is_flat(x, setting),
                WIDE=max(t.numel() // max(1, t.shape[1]) for t in (x, y)) > WIDEST)


def _precision(dtype: torch.dtype) -> str:
    """Of the products: TF32 for single precision, for which there is no other form of the kernels worth having."""
    if interpreted():
        return 'emulated' if dtype == torch.bfloat16 else 'ieee'
    return 'ieee' if dtype in HALF else 'tf32'


def _of_dtype(tile: dict, summed: str, like: Tensor) -> dict:
    """Half as many are summed at a time where the numbers have twice the size."""
    return dict(tile, **{summed: tile[summed] // 2}) if like.dtype == torch.float32 else tile


def _fitted(tile: dict, columns: int, inner: int) -> dict:
    """A tile made smaller where the layer is; 16 is the least that `tl.dot` takes."""
    return dict(tile, BN=min(tile['BN'], max(16, power_of_2(columns))),
                BC=min(tile['BC'], max(16, power_of_2(inner))))


def _like(channels: int) -> int:
    """A number of channels for which the kernels are compiled in the same way."""
    size = min(128, max(16, power_of_2(channels)))
    return size if channels % 16 == 0 else size - 3


def _agrees(dtype: torch.dtype, contiguous: bool, dtypes: tuple[torch.dtype | None, ...], inputs: int, outputs: int,
            kind: str, count: int, grid_dtypes: tuple[torch.dtype, ...], grids: bool, steps: tuple[float, ...],
            setting: Setting, out: torch.dtype, precision: str, training: bool, flat: bool,
            device: str = 'cuda') -> bool:
    """Whether a variant of the kernels gives what PyTorch gives in double precision, on a small input."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, dtype: torch.dtype | None) -> Any:
        return None if dtype is None else torch.randn(size, generator=generator).to(device, dtype)

    (kh, kw), (sh, sw) = setting.kernel, setting.stride
    x = random(*((150, inputs, 1, 1) if flat else (3, inputs, kh + 3 * sh, kw + 4 * sw + 1)), dtype=dtype)
    x = x if contiguous else x.contiguous(memory_format=torch.channels_last)
    shape = outputs, inputs, kh, kw
    parameters = Parameters(*(random(*size, dtype=each) for size, each in zip(
        ((*shape[:2], count + setting.constant, kh, kw), shape, shape, shape, shape[:1]), dtypes, strict=True)))
    functions = example(kind, count, inputs if grids else None, grid_dtypes, steps, device)
    double: list[Any] = [t if t is None else t.double().requires_grad_() for t in (x, *parameters)]
    x, *leaves = double
    # mypy does not count what a star gives
    expected = conv_by_definition(*double, functions, *setting[:3], *setting[4:])  # type: ignore[call-arg]
    results, rights = [forward(x.detach().to(dtype), parameters, functions, setting, out)], [expected]
    if training:
        grad = random(*expected.shape, dtype=out)
        given = [x, *(leaf for leaf in leaves if leaf is not None)]
        grads = backward(x.detach().to(dtype), parameters, functions, setting, grad, True, True)
        found = torch.autograd.grad(expected, given, grad.double())
        results += [t for t in grads if t is not None]
        rights += [t for t, leaf in zip(found, given, strict=True) if leaf is not leaves[3]]  # the mask has none
    tolerance = 1e-5 if out not in HALF and precision == 'ieee' else 4 * max(torch.finfo(out).eps, 2**-10)
    return all(is_close(*pair, tolerance) for pair in zip(results, rights, strict=True))


def _is_flat(x: Tensor, setting: Setting) -> bool:
    """Whether each picture is one pixel, which meets one tap: the rows of a linear layer."""
    return setting[3:] == ((1, 1), (1, 1), (0, 0)) and x.shape[2:] == (1, 1)


def _layout(t: Tensor, setting: Setting) -> int:
    """As the kernels call it: 1 if channels lie side by side, 2 if all else that counts is in multiples of 16, too."""
    sb, sc, sh, sw = t.stride()
    others = (sb,) if _is_flat(t, setting) else (sb, sh, sw)
    return (sc == 1) * (1 + all(s % 16 == 0 for s in others))
