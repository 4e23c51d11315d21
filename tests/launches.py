"""Count what runs on a GPU, without one: PyTorch's operations on fake CUDA tensors, and Triton kernels not launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rkan_mm.models import rkan_block
from rkan_mm.models.layers import activated_kan_conv, kan_layer
from rkan_mm.models.ops import expand_triton, fused, fused_triton, shared_polynomial_conv, shared_polynomial_conv_triton
from rkan_mm.models.ops.shared_polynomial_conv import _OnGpu, _SharedPolynomialConv
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window

expand = import_module('rkan_mm.models.ops.expand')  # the package has a function of this name
KERNELS = expand_triton, fused_triton, shared_polynomial_conv_triton
FREE = {'detach', 'empty', 'empty_like', 'new_empty', 'empty_strided', 'alias', 'view', '_unsafe_view', 'slice',
        'select', 'unsqueeze', 'squeeze', 'expand', 'permute', 't', 'transpose', 'unbind', 'split', 'as_strided',
        'lift_fresh'}
"""Operations that launch nothing: views, and memory without values."""


class _Record(TorchDispatchMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = function.name().partition('.')[0].partition('::')
        if space != 'prim' and name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def launches(function: Callable[[], object]) -> list[str]:
    """The names of all that ``function`` launches; call it within :func:`fake_gpu` or :func:`forms_of_a_gpu`."""
    names = []

    def launch(call, *tensors) -> None:
        names.append(call.kernel.fn.__name__)

    with ExitStack() as stack:
        for module in KERNELS:
            stack.enter_context(patch.object(module, 'launch', launch))
        stack.enter_context(_Record(names))
        function()
    return names


@contextmanager
def fake_gpu() -> Iterator[None]:
    """New tensors and modules are on a GPU that is not there, and take the Triton kernels of this package."""
    with ExitStack() as stack:
        for module in (expand, fused, shared_polynomial_conv):
            stack.enter_context(patch.object(module, 'readable', lambda *args, **kwargs: True))
        for module in KERNELS:
            stack.enter_context(patch.object(module, 'is_there', lambda *args: True))
        for module in (kan_layer, activated_kan_conv):
            stack.enter_context(patch.object(module, 'is_transformed', lambda: False))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.device('cuda'))
        yield


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """A module with real values, for whose looks at them fake ones are no good, as one on the fake GPU around."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype))
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
    return module


@contextmanager
def forms_of_a_gpu() -> Iterator[None]:
    """CPU tensors take the Triton kernels, too: for the backward pass, which autograd refuses fake CUDA tensors."""
    def activated(x, act, before, kan, norm) -> torch.Tensor:
        form = _OnGpu(True, Window(kan.stride, kan.padding, kan.dilation), kan.basis, None, True)
        return norm(_SharedPolynomialConv.apply(x, kan.weight, kan.base_weight, kan.scaler, form))

    with (patch.object(shared_polynomial_conv, 'readable', lambda *args, **kwargs: True),
          patch.object(rkan_block, 'activated_kan_conv2d', activated)):
        yield
