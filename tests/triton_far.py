"""Run the last program of a kernel alone, in Triton's interpreter: for arrays that are too large to be worked through.

Their memory is never touched but where that program reads and writes, so the system gives it out without having it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

import torch
from triton.runtime import interpreter

from rkan_mm.models.ops.triton_launch import Launch


def _launch_last(call: Launch, *tensors: torch.Tensor) -> None:
    last = tuple(n - 1 for n in call.grid)
    builder = interpreter.interpreter_builder

    def take_last(*_) -> None:
        builder.grid_idx = last

    with (patch.object(builder, 'set_grid_idx', take_last),
          patch.object(interpreter.GridExecutor, '_restore_args_dev', lambda *_: None)):  # it copies all to itself
        call.kernel[1, 1, 1](*tensors, *call.numbers, **call.constants)


@contextmanager
def last_programs(module: ModuleType) -> Iterator[None]:
    """Kernels that ``module`` launches run their last program and no other."""
    with patch.object(module, 'launch', _launch_last):
        yield


def untouched(*shape: int, dtype: torch.dtype = torch.float16, channels_last: bool = False) -> torch.Tensor:
    """A tensor in memory that nobody has written to."""
    tensor = torch.empty(shape, dtype=dtype)
    return torch.empty_like(tensor, memory_format=torch.channels_last) if channels_last else tensor
