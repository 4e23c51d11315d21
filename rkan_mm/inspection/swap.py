"""Turning blocks and functions off, or straight, for a while: nothing is left of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkan_mm.models.layers import KANLinear

from .functions import LayerFunctions
from .inputs import padded, seen
from .statistics import Lines


@contextmanager
def swapped(module: nn.Module, name: str, method: Callable | None) -> Iterator[None]:
    """Meanwhile ``module.name`` is another callable, or None. Neither weights nor hooks are touched."""
    before = {name: module.__dict__[name]} if name in module.__dict__ else {}
    module.__dict__[name] = method
    try:
        yield
    finally:
        del module.__dict__[name]
        module.__dict__.update(before)


@contextmanager
def replaced(layer: nn.Module, forward: Callable) -> Iterator[None]:
    """Meanwhile a KAN layer computes something else in the place of all its functions, those locked to formulas too."""
    with swapped(layer, 'forward', forward), swapped(layer, 'locked', None):  # which tells the hook that adds them
        yield


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Afterwards all random number generators are where they were: Python's, NumPy's, torch's on every device."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model is in eval mode and its parameters get no gradients; afterwards all is as before.

    That is: training mode of every module, ``requires_grad`` and ``grad`` of every parameter, and the state of all
    random number generators.
    """
    training = {module: module.training for module in model.modules()}
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with same_random_numbers():
        try:
            for module in training:  # some of mm's modules keep their own counsel in train()
                module.training = False
            for parameter, *_ in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            for parameter, requires_grad, grad in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad


@contextmanager
def without_block(bridge: nn.Module) -> Iterator[None]:
    """Meanwhile a stage of a RKANet gives what it gives without its RKAN block.

    Args:
        bridge: a `BridgedStage`, or an RKAN block that stands alone; this then gives zeros.
    """
    if hasattr(bridge, 'fuse'):
        with swapped(bridge, 'fuse', lambda x, out: out):
            yield
    else:
        forward = bridge.forward
        with swapped(bridge, 'forward', lambda x: torch.zeros_like(forward(x))):
            yield


@contextmanager
def without_functions(layers: list[nn.Module]) -> Iterator[None]:
    """Meanwhile KAN layers have no functions but their base branch `w a(x)`, and their bias."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(layer, _base_alone(LayerFunctions(layer))))
        yield


@contextmanager
def straightened(lines: dict[nn.Module, Lines]) -> Iterator[None]:
    """Meanwhile each function of these KAN layers is a straight line.

    Args:
        lines: by layer, see `Statistics.lines`.
    """
    with ExitStack() as stack:
        for layer, own in lines.items():
            stack.enter_context(replaced(layer, _straight(LayerFunctions(layer), own)))
        yield


def _straight(functions: LayerFunctions, lines: Lines) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if functions.shared and functions.two_arguments:
            return _over_patches(functions, x, lambda patches, u: [
                (torch.ones_like(u), lines.intercept), (patches, lines.slope), (u, lines.slope_u)])
        out = _linear(functions, torch.ones_like(x), lines.intercept, output_size, 1.0)
        out = out + _linear(functions, x, lines.slope, output_size)
        if lines.slope_u is not None:
            out = out + _linear(functions, seen(functions, x), lines.slope_u, output_size)
        return _with_bias(functions, out)

    return forward


def _base_alone(functions: LayerFunctions) -> Callable[[Tensor], Tensor]:
    def act(x: Tensor) -> Tensor:
        return x if functions.layer.base_act is None else functions.layer.base_act(x)

    weight = torch.zeros(functions.shape) if functions.base is None else functions.base

    def forward(x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if getattr(functions.layer, 'normalize_base', False):
            return _over_patches(functions, x, lambda patches, u: [(act(u), weight)])
        return _with_bias(functions, _linear(functions, act(x), weight, output_size))

    return forward


def _with_bias(functions: LayerFunctions, out: Tensor) -> Tensor:
    bias = functions.layer.bias
    if bias is None:
        return out
    spread = functions.shared or isinstance(functions.layer, KANLinear)
    return out + (bias if spread else bias.reshape(-1, *[1] * functions.layer.spatial)).to(out.dtype)


def _linear(functions: LayerFunctions, x: Tensor, weight: Tensor, output_size: list[int] | None,
            padding_value: float = 0.0) -> Tensor:
    """The layer as an ordinary one with these weights, without bias."""
    layer, weight = functions.layer, weight.to(x)
    if isinstance(layer, KANLinear):
        return F.linear(x, weight)
    if getattr(layer, 'transposed', False):
        more = layer._output_padding(x, output_size, layer.stride, layer.padding, layer.kernel_size, 2, layer.dilation)
        return F.conv_transpose2d(x, weight, None, layer.stride, layer.padding, more, layer.groups, layer.dilation)
    spatial = 2 if functions.shared else layer.spatial
    batched = x if x.dim() == spatial + 2 else x.unsqueeze(0)
    plane = padded(functions, batched, padding_value)
    weight = weight[None, None] if functions.shared else weight
    out = getattr(F, f'conv{spatial}d')(plane, weight, None, layer.stride, 0, layer.dilation,
                                        getattr(layer, 'groups', 1))
    if functions.shared:
        out = out.reshape(*batched.shape[:2], *out.shape[2:])
    return out if batched is x else out.squeeze(0)


def _over_patches(functions: LayerFunctions, x: Tensor,
                  terms: Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]]) -> Tensor:
    """Sum over the taps of planes made of patches and what the normalisation makes of them, (B * C, taps, L)."""
    layer = functions.layer
    patches = F.unfold(x.flatten(0, 1).unsqueeze(1), layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    u = layer.normalized(patches)
    out = sum(torch.einsum('npl,p->nl', plane, weight.flatten().to(x)) for plane, weight in terms(patches, u))
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in
            zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)]
    return _with_bias(functions, out.reshape(*x.shape[:2], *size))
