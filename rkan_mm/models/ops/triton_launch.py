"""What the Triton kernels of this package share: the launch, and whether a kernel is right on the GPU at hand."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Hashable
from typing import Any

import torch
from mmengine.logging import MMLogger
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .compiled import kernels_wanted

HALF = (torch.float16, torch.bfloat16)
_known: dict[tuple, bool] = {}


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *args, **constants) -> None:
    """Run a Triton kernel as ``kernel[grid](x, *args, **constants)`` on the device of ``x``."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        kernel[grid](x, *args, **constants)
        return
    with torch.cuda.device_of(x):
        kernel[grid](x, *args, **constants)


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


def is_right(check: Callable[..., bool], *case: Hashable) -> bool:
    """Whether ``check(*case)`` says that a kernel gives what PyTorch gives; asked once for each case.

    A case is one variant of the kernel, as its constants make it, so that asking compiles little that its use would
    not. What fails is told once in the log; then take the PyTorch form. While a CUDA graph is captured nothing can be
    checked, and what was not checked before counts as not there.
    """
    if not kernels_wanted():
        return False
    key = check, case
    found = _known.get(key)
    if found is None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        found = _known[key] = _run(check, case)
    return found


def is_close(result: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether a result is as near to one in double precision as its dtype allows, and ``tolerance``."""
    if result.dtype in HALF:
        tolerance = max(tolerance, 4 * torch.finfo(result.dtype).eps)
    return bool((result.double() - right).norm() <= tolerance * right.norm())


def _run(check: Callable[..., bool], case: tuple) -> bool:
    try:
        with (torch.autocast('cuda', enabled=False), torch.inference_mode(False), torch.enable_grad(),
              saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)):  # a checkpoint counts what is saved
            if check(*case):
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
