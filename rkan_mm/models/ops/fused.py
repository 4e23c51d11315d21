"""KAN convolution and linear layer in one kernel on a GPU, where there is one and it is worth it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .definition import conv_by_definition
from .functions import Functions
from .gate import autocast_dtype, gradients, readable
from .optional import optional_module

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNELS, STRIDES = ((1, 1), (3, 3)), (1, 2)
MAX_FUNCTIONS = 16
MAX_OUTPUTS = 128
"""One tile. With more, functions would be computed again for each: values that are written once are faster then."""
MIN_PIXELS = 4096
"""With fewer, a library's product fills a GPU of some hundred processors better."""

FORCED: bool | None = None
"""For benchmarks: True takes the fused form wherever it can be had, False nowhere."""

Layer = tuple[str, bool, bool, tuple[int, int], tuple[int, int], tuple[int, int]]
"""The fields of `fused_triton.Setting`."""


def fused_is_wanted() -> bool:
    """Whether the fused form is looked for at all: for training planes were faster wherever both were measured."""
    return not torch.is_grad_enabled() if FORCED is None else FORCED


def fused_conv2d(x: Tensor, parameters: tuple[Tensor | None, ...], functions: Functions | None, layer: Layer,
                 tf32: bool) -> Tensor | None:
    """The KAN convolution of (B, C, H, W) to (B, O, H', W'); None where the other forms are to be taken.

    Args:
        x: zeros are padded before the functions.
        parameters: those of `fused_triton.Parameters`.
        functions: None where the kernels do not know them.
        layer: see :data:`Layer`.
        tf32: whether products of single precision may be taken in TF32, without which there is no kernel for it.
    """
    if functions is None or not x.is_cuda or not fused_is_wanted():
        return None
    kernels = optional_module('fused_triton')
    if kernels is None or not readable(x, *parameters, *functions.arrays, dtypes=DTYPES, device='cuda'):
        return None
    if not functions.fit(x.shape[1]):
        return None
    setting, given = kernels.Setting(*layer), kernels.Parameters(*parameters)
    if not fit_together(x, given, functions, setting):
        return None
    autocast = autocast_dtype('cuda')
    dtype = autocast or x.dtype
    if not _is_taken(x, given.basis_weight, functions, setting, dtype, tf32):
        return None
    if any(t is not None and not (t.device == x.device and (autocast or t.dtype == dtype)) for t in parameters):
        return None
    if not kernels.is_there(x, given, functions, setting, dtype):
        return None
    if torch.is_grad_enabled():
        return _Fused.apply(x, *parameters, functions, setting, dtype)
    return kernels.forward(x, given, functions, setting, dtype)


def tf32_allowed(backend: str) -> bool:
    """Whether PyTorch may take TF32 in ``'cudnn'``'s convolutions or in ``'matmul'``."""
    try:
        return torch.backends.cudnn.allow_tf32 if backend == 'cudnn' else torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # it was set by torch's newer settings, which do not go with these
        return False


def fit_together(x: Tensor, parameters: Any, functions: Functions, setting: Any) -> bool:
    """Whether the parameters have the shapes that the kernels expect of them; PyTorch broadcasts others, or refuses."""
    outputs, flat = len(parameters.basis_weight), setting.kernel == (1, 1) and parameters.basis_weight.dim() == 3
    taps = () if flat else setting.kernel
    shape = outputs, x.shape[1], *taps
    if parameters.basis_weight.shape != (*shape[:2], functions.count + setting.constant, *taps):
        return False
    if not all(len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair) for pair in setting[3:]):
        return False
    return (parameters.bias is None or parameters.bias.shape == (outputs,)) and all(
        t is None or t.shape == shape for t in (parameters.weight, parameters.scaler, parameters.mask))


def _is_taken(x: Tensor, basis_weight: Tensor, functions: Functions, setting, dtype: torch.dtype, tf32: bool) -> bool:
    """Whether there is such a kernel, and it was faster than planes on a card (docs/gpu.md)."""
    if (setting.kernel not in KERNELS or not set(setting.stride) <= set(STRIDES) or functions.count > MAX_FUNCTIONS
            or dtype not in DTYPES or (dtype == torch.float32 and not tf32)):
        return False
    height, width = setting.output_size(x)
    if min(height, width) < 1 or FORCED:
        return min(height, width) > 0
    return (setting.kernel == (1, 1) and len(basis_weight) <= MAX_OUTPUTS
            and len(x) * height * width >= MIN_PIXELS)


class _Fused(torch.autograd.Function):
    """Of the values of the forward pass, the input alone is kept."""

    @staticmethod
    def forward(ctx, x, basis_weight, weight, scaler, mask, bias, functions, setting, dtype):
        ctx.save_for_backward(x, basis_weight, weight, scaler, mask, bias, *functions.arrays)
        ctx.functions, ctx.setting = functions, setting
        kernels = optional_module('fused_triton')
        parameters = kernels.Parameters(basis_weight, weight, scaler, mask, bias)
        return kernels.forward(x, parameters, functions, setting, dtype)

    @staticmethod
    def backward(ctx, grad):
        (x, *parameters), arrays = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        functions, wanted = ctx.functions.with_arrays(arrays), ctx.needs_input_grad[:6]
        if torch.is_grad_enabled() or not readable(*ctx.saved_tensors, grad, dtypes=DTYPES, device='cuda'):
            return *_by_pytorch((x, *parameters), wanted, functions, ctx.setting, grad), *[None] * 3
        kernels = optional_module('fused_triton')
        grads = kernels.backward(x, kernels.Parameters(*parameters), functions, ctx.setting, grad, wanted[0],
                                 any(wanted[1:]))
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *[None] * 3


def _by_pytorch(inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...], functions: Functions, setting,
                grad: Tensor) -> list[Tensor | None]:
    """The gradients by PyTorch, in single precision."""
    def plain(*inputs: Tensor | None) -> Tensor:
        single: list[Any] = [None if t is None else t.float() for t in inputs]
        # mypy does not count what a star gives
        out = conv_by_definition(*single, functions, *setting[:3], *setting[4:])  # type: ignore[call-arg]
        return out.to(grad.dtype)

    return gradients(plain, inputs, wanted, grad)
