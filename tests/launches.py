"""Count what runs on a GPU, without one: PyTorch's operations on fake CUDA tensors, and Triton kernels not launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rkan_mm.models.ops import shared_polynomial_conv, shared_polynomial_conv_triton
from rkan_mm.models.ops.shared_polynomial_conv import _OnGpu

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

    def launch(kernel, grid, *args, **constants) -> None:
        names.append(kernel.fn.__name__)

    with patch.object(shared_polynomial_conv_triton, 'launch', launch), _Record(names):
        function()
    return names


@contextmanager
def fake_gpu() -> Iterator[None]:
    """New tensors and modules are on a GPU that is not there, and take the Triton kernels of this package."""
    with (FakeTensorMode(), torch.device('cuda'),
          patch.object(shared_polynomial_conv, 'readable', lambda *args, **kwargs: True),
          patch.object(shared_polynomial_conv_triton, 'is_there', lambda *args: True)):
        yield


@contextmanager
def forms_of_a_gpu() -> Iterator[None]:
    """CPU tensors take the Triton kernels, too: for the backward pass, which autograd refuses fake CUDA tensors."""
    def form(x, parameters, squash, window, basis) -> _OnGpu:
        return _OnGpu(squash, window, basis)

    with (patch.object(shared_polynomial_conv, 'readable', lambda *args, **kwargs: True),
          patch.object(shared_polynomial_conv, '_form', form)):
        yield
