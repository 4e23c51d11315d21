"""What the Triton kernels of this package share: the launch, and whether a kernel is right on the GPU at hand."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Hashable
from typing import Any

import torch
import triton
from mmengine.logging import MMLogger
from torch import Tensor

from .compiled import alone, kernels_wanted
from .gate import HALF

TAKES_ALL_ARGUMENTS = tuple(map(int, triton.__version__.split('.')[:2])) >= (3, 3)
"""Whether a compiled kernel is called with its constants, too; before, it was not."""
_known: dict[tuple, bool] = {}


class Launch:
    """A launch of a Triton kernel but for its tensors, which come first among its arguments.

    Keep it for as long as sizes stay the same: Triton looks at each argument of ``kernel[grid](...)``, which takes
    several times as long as a small kernel runs. From the second time on the compiled kernel is called itself.
    """

    __slots__ = 'compiled', 'constants', 'grid', 'kernel', 'numbers', 'rest'

    def __init__(self, kernel: Any, grid: tuple[int, ...], numbers: tuple[int, ...] = (), **constants: Any) -> None:
        self.kernel, self.numbers, self.constants = kernel, numbers, constants
        self.grid = (*grid, 1, 1)[:3]
        self.compiled: dict[tuple | None, Any] = {}
        self.rest: tuple[Any, ...] = ()

    def __call__(self, *tensors: Tensor) -> None:
        """On the current device, where the tensors are."""
        addresses, key = 0, []
        for t in tensors:
            addresses |= t.data_ptr()
            key.append(t.dtype)
        # Triton compiles pointers in one way where they are multiples of 16, in another where they are not
        variant = None if addresses % 16 else (tensors[0].device, *key)
        if variant in self.compiled:
            self.compiled[variant][self.grid](*tensors, *self.rest)
            return
        compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.constants)
        if compiled is not None and variant is not None and tensors[0].is_cuda and TAKES_ALL_ARGUMENTS:
            names = self.kernel.arg_names[len(tensors) + len(self.numbers):]
            self.rest = *self.numbers, *(self.constants[name] for name in names)
            self.compiled[variant] = compiled


def launch(call: Launch, *tensors: Tensor) -> None:
    """Run a kernel on the device of its tensors."""
    x = tensors[0]
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        call(*tensors)
        return
    with torch.cuda.device_of(x):
        call(*tensors)


def cdiv(a: int, b: int) -> int:
    """As Triton's, which takes several microseconds."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The next one, or n itself; likewise."""
    return 1 << (n - 1).bit_length()


@functools.cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which knows no instructions of a GPU."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def is_right(check: Callable[..., bool], x: Tensor, *case: Hashable) -> bool:
    """Whether ``check(*case)`` says that a kernel gives what PyTorch gives; asked once for each case and GPU.

    It is asked on the GPU of ``x``, which need not be the current one; that may be of another kind, or full.

    A case is one variant of the kernel, as its constants make it, so that asking compiles little that its use would
    not. What fails is told once in the log; then take the PyTorch form. While a CUDA graph is captured nothing can be
    checked, and what was not checked before counts as not there.
    """
    if not kernels_wanted():
        return False
    gpu = x.get_device()
    key = check, gpu, case
    found = _known.get(key)
    if found is None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        found = _known[key] = _run(check, case, gpu)
    return found


def is_close(result: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether a result is as near to one in double precision as its dtype allows, and ``tolerance``."""
    if result.dtype in HALF:
        tolerance = max(tolerance, 4 * torch.finfo(result.dtype).eps)
    return bool((result.double() - right).norm() <= tolerance * right.norm())


def _run(check: Callable[..., bool], case: tuple, gpu: int) -> bool:
    def checked() -> bool:
        with torch.cuda.device(gpu) if gpu >= 0 else contextlib.nullcontext():
            return check(*case) and check(*case)  # once as Triton launches, once as `Launch` does

    try:
        if alone(checked):
            return True
        reason = 'their results differ from those of PyTorch'
    except Exception as error:  # whatever Triton, its compiler or the driver may raise
        reason = f'{type(error).__name__}: {error}'
    _tell(check.__module__, reason)
    return False


@functools.cache
def _tell(module: str, reason: str) -> None:
    MMLogger.get_current_instance().log(
        logging.WARNING, f'rkan_mm goes on in plain PyTorch, without the Triton kernels of {module}: {reason}')
