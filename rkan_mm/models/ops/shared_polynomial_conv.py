"""The convolution of per-tap polynomials with one kernel for all channels, in the fastest form there is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .gate import autocast_dtype, gradients, is_channels_last, readable
from .optional import optional_module as _module
from .shared_polynomial_conv_op import DTYPES, implement, is_one_operation, layout_of, one_operation, window_of
from .shared_polynomial_conv_torch import (
    MAX_DEGREE,
    Window,
    changed,
    identity,
    in_each,
    shared_polynomial_conv2d_torch,
    single_of,
)
from .tracing import folded

Norm = tuple[Tensor, Tensor, Tensor, Tensor, float]


class Polynomials(Protocol):
    """What is asked of a basis: how its polynomials are made of monomials."""

    change: tuple[float, ...]
    """(d + 1)^2 numbers: row n has what each polynomial has of t^n."""

    def to_monomials(self, weight: Tensor) -> Tensor:
        """Coefficients of the polynomials, (d + 1, kh, kw), to those of the monomials."""


def shared_polynomial_conv2d(x: Tensor,
                             weight: Tensor,
                             base_weight: Tensor | None = None,
                             normalize: Callable[[Tensor], Tensor] = torch.tanh,
                             base_act: Callable[[Tensor], Tensor] | None = None,
                             stride: tuple[int, int] = (1, 1),
                             padding: tuple[int, int] = (0, 0),
                             dilation: tuple[int, int] = (1, 1),
                             scaler: Tensor | None = None,
                             basis: Polynomials | None = None,
                             constant: bool = False) -> Tensor:
    r"""Sum over taps `p` of :math:`w_p a(x_p) + s_p \sum_{n=0}^d c_{n,p} P_n(u(x_p))`, the same for every channel.

    Where a kernel of this package serves (single or half precision, ``normalize`` tanh or :func:`identity`, no
    ``base_act``, no tracing, compiling or transform under way), backward needs the input and nothing else, and all is
    computed in single precision. Elsewhere it is :func:`shared_polynomial_conv2d_torch`. ``RKAN_MM_KERNELS=0`` in the
    environment asks for that everywhere.

    Args:
        x: input, (B, C, H, W).
        weight: coefficients `c`, (d + 1, kh, kw).
        base_weight: `w`, (kh, kw).
        normalize: `u`, element-wise, with u(0) = 0.
        base_act: `a`, element-wise, with a(0) = 0; None is the identity.
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`.
        scaler: `s`, (kh, kw); None is 1.
        basis: the polynomials `P`; None are the monomials, constant first.
        constant: whether the weights are, as in eval mode: see :func:`folded`.

    Returns:
        (B, C, H', W'), of the dtype that a convolution of ``x`` has (autocast applies).
    """
    stride, padding, dilation = window = Window(in_each(stride), in_each(padding), in_each(dilation))
    plain = base_act is None and normalize in (torch.tanh, identity) and (
        type(stride) is type(padding) is type(dilation) is tuple)
    if plain and torch.compiler.is_compiling() and is_one_operation(x, weight, base_weight, scaler, window):
        return one_operation(x, weight, base_weight, scaler, None if basis is None else [*basis.change],
                             normalize is torch.tanh, window)
    form = _form(x, (weight, base_weight, scaler), normalize is torch.tanh, window, basis) if plain else None
    if form is None or not form.prepares:
        weight, scaler = folded(_monomials, weight, scaler, basis, constant=constant), None
    if form is None:
        return shared_polynomial_conv2d_torch(x, weight, base_weight, normalize, base_act, *window, constant)
    run = _SharedPolynomialConv.apply if torch.is_grad_enabled() else _evaluate
    return run(x, weight, base_weight, scaler, form)


def activated_polynomial_conv2d(x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None,
                                basis: Polynomials, squash: bool, window: Window,
                                norm: Norm | None) -> Tensor | None:
    """:func:`shared_polynomial_conv2d` of SiLU of ``x``, and ``norm`` of that, by one kernel; None where there is none.

    Args:
        x, weight, base_weight, scaler, basis, window: as there.
        squash: whether the normalisation is tanh, else there is none.
        norm: of a constant batch norm mean, variance, weight, bias, (C,) each, and what is added to the variance; it
            has no gradients.
    """
    form = _form(x, (weight, base_weight, scaler), squash, window, basis, True, norm) if x.is_cuda else None
    if form is None:
        return None
    run = _SharedPolynomialConv.apply if torch.is_grad_enabled() else _evaluate
    return run(x, weight, base_weight, scaler, form)


def _monomials(weight: Tensor, scaler: Tensor | None, basis: Polynomials | None) -> Tensor:
    weight = single_of(weight)
    weight = weight if scaler is None else weight * scaler
    return weight if basis is None else basis.to_monomials(weight)


class _OnCpu(NamedTuple):
    """Compiled kernels, which take coefficients of monomials."""

    squash: bool
    window: Window
    basis: None = None
    act: bool = False

    @property
    def prepares(self) -> bool:
        return False

    def forward(self, x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: None) -> Tensor:
        weights, dtype = _folded(weight, base_weight, self.squash), autocast_dtype('cpu') or x.dtype
        y = _module('shared_polynomial_conv_cpu').forward(x, *weights, self.squash, self.window, dtype)
        return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y

    def backward(self, inputs: tuple[Any, ...], grad: Tensor,
                 needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        x, weight, base_weight, _ = inputs
        grads = _module('shared_polynomial_conv_cpu').backward(x.detach(), *_folded(weight, base_weight, self.squash),
                                                               self.squash, self.window, grad, needed[0],
                                                               any(needed[1:]))
        if not self.squash and needed[2]:
            grads = *grads[:2], grads[1][1]
        return *grads, None


class _OnGpu(NamedTuple):
    """Triton kernels, which take the parameters as they are."""

    squash: bool
    window: Window
    basis: Polynomials | None
    dtype: torch.dtype | None = None
    """Of the output; None is that of autocast, or of the input."""
    act: bool = False
    norm: Norm | None = None

    @property
    def prepares(self) -> bool:
        return True

    @property
    def change(self) -> tuple[float, ...] | None:
        return None if self.basis is None else self.basis.change

    def forward(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        dtype = self.dtype or autocast_dtype('cuda') or x.dtype
        return _module('shared_polynomial_conv_triton').forward(x, parameters, self.change, self.squash, self.window,
                                                                dtype, self.act, self.norm)

    def backward(self, inputs: tuple[Any, ...], grad: Tensor,
                 needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        return _module('shared_polynomial_conv_triton').backward(inputs[0], inputs[1:], self.change, self.squash,
                                                                 self.window, grad, needed[0], any(needed[1:]),
                                                                 self.act)


def _form(x: Tensor, parameters: tuple[Any, ...], squash: bool, window: Window, basis: Polynomials | None,
          act: bool = False, norm: Norm | None = None, dtype: torch.dtype | None = None) -> _OnCpu | _OnGpu | None:
    """The kernels for these tensors; None if only PyTorch can do it, or say what is wrong with them.

    ``dtype`` is that of autocast where it is known and no longer asked.
    """
    device = 'cuda' if x.is_cuda else 'cpu'
    constants = () if norm is None else norm[:4]
    if not readable(x, *parameters, *constants, dtypes=DTYPES, device=device):
        return None
    for t in constants:
        if t.shape != x.shape[1:2] or t.device != x.device:
            return None
    weight, base_weight, scaler = parameters
    if not window.is_whole() or not _is_taken(x.shape, weight.shape,
                                              None if base_weight is None else base_weight.shape,
                                              None if scaler is None else scaler.shape, window):
        return None
    autocast = dtype or autocast_dtype(device)
    for t in parameters:
        if t is not None and not (t.device == x.device and (autocast or t.dtype == x.dtype)):
            return None
    if device == 'cpu':
        return _OnCpu(squash, window) if _module('shared_polynomial_conv_cpu').is_there() else None
    form = _OnGpu(squash, window, basis, autocast or x.dtype, act, norm)
    kernels = _module('shared_polynomial_conv_triton')
    there = kernels is not None and kernels.is_there(x, parameters, form.change, squash, window, form.dtype, act, norm)
    return form if there else None


@functools.lru_cache(maxsize=256)
def _is_taken(size: torch.Size, weight: torch.Size, base_weight: torch.Size | None, scaler: torch.Size | None,
              window: Window) -> bool:
    """Whether tensors of these shapes go together, and the kernels take such a window."""
    if len(size) != 4 or len(weight) != 3 or not 1 < weight[0] <= MAX_DEGREE + 1:
        return False
    return all(t is None or t == weight[1:] for t in (base_weight, scaler)) and window.is_served(size, weight)


@dataclass
class _Changed:
    """Polynomials of which the change to monomials is known."""

    change: tuple[float, ...]

    def to_monomials(self, weight: Tensor) -> Tensor:
        return changed(weight, self.change)


def _in_graph(x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None,
              change: list[float] | None, squash: bool, numbers: list[int], dtype: torch.dtype) -> tuple[Any, ...]:
    """The kernels for a node of a compiled graph, None where they are not; and what PyTorch does in their place."""
    window, basis = window_of(numbers), None if change is None else _Changed(tuple(change))
    form = _form(x, (weight, base_weight, scaler), squash, window, basis, dtype=dtype)
    return form if isinstance(form, _OnGpu) else None, _OnGpu(squash, window, basis, dtype)


def _forward_in_graph(*args: Any) -> Tensor:
    form, plain = _in_graph(*args)
    y = _by_pytorch(args[:4], plain, args[-1]) if form is None else form.forward(*args[:4])
    return y.contiguous(memory_format=layout_of(args[0]))


def _backward_in_graph(*args: Any) -> list[Tensor]:
    inputs, grad, needed = args[:4], *args[-2:]
    with torch.enable_grad():  # else the kernels of the forward pass alone would be checked
        form, plain = _in_graph(*args[:-2])
    grads = (_gradients_by_pytorch(inputs, needed, plain, grad) if form is None else
             form.backward(inputs, grad, needed))
    layouts = layout_of(args[0]), *[torch.contiguous_format] * 3
    return [g.to(t.dtype).contiguous(memory_format=layout)
            for g, t, layout, need in zip(grads, inputs, layouts, needed, strict=True) if need]


implement(_forward_in_graph, _backward_in_graph)


def _evaluate(x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None,
              form: _OnCpu | _OnGpu) -> Tensor:
    return form.forward(x, weight, base_weight, scaler)


class _SharedPolynomialConv(torch.autograd.Function):
    """Of the values of the forward pass, the input alone is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, base_weight: Tensor | None, scaler: Tensor | None,
                form: _OnCpu | _OnGpu) -> Tensor:
        ctx.save_for_backward(x, weight, base_weight, scaler)
        ctx.form = form
        return form.forward(x, weight, base_weight, scaler)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or not readable(*inputs, grad, dtypes=DTYPES, device=inputs[0].device.type):
            return *_gradients_by_pytorch(inputs, needed, ctx.form, grad), None
        grads = ctx.form.backward(inputs, grad, needed)
        grads = [g.to(t.dtype) if need else None for g, t, need in zip(grads, inputs, needed, strict=True)]
        return *grads, None


def _folded(weight: Tensor, base_weight: Tensor | None, squash: bool) -> tuple[Tensor, Tensor | None]:
    """The weights for kernels; without a normalisation, the base branch is a part of the linear term."""
    weight, base_weight = (None if t is None else t.detach().float().contiguous() for t in (weight, base_weight))
    if base_weight is None or squash:
        return weight, base_weight
    return torch.cat([weight[:1], weight[1:2] + base_weight, weight[2:]]), None


def _by_pytorch(inputs: Sequence[Tensor | None], form: _OnCpu | _OnGpu, dtype: torch.dtype) -> Tensor:
    """The values by PyTorch, in single precision."""
    x, weight, base_weight, scaler = (None if t is None else t.float() for t in inputs)
    x = F.silu(x) if form.act else x
    y = shared_polynomial_conv2d_torch(x, _monomials(weight, scaler, form.basis), base_weight,
                                       torch.tanh if form.squash else identity, None, *form.window)
    return y.to(dtype)


def _gradients_by_pytorch(inputs: Sequence[Tensor | None], needed: Sequence[bool], form: _OnCpu | _OnGpu,
                          grad: Tensor) -> list[Tensor | None]:
    """The gradients by PyTorch, in single precision."""
    return gradients(lambda *inputs: _by_pytorch(inputs, form, grad.dtype), inputs, needed, grad)
