"""Run the last program of a kernel alone, in Triton's interpreter: for arrays that are too large to be worked through.

Their memory is never touched but where that program reads and writes, so the system gives it out without having it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime import interpreter


def _launch_last(kernel: Any, grid: tuple[int, ...], *args, **constants) -> None:
    last = tuple(n - 1 for n in grid) + (0,) * (3 - len(grid))
    builder = interpreter.interpreter_builder

    def take_last(*_) -> None:
        builder.grid_idx = last

    with (patch.object(builder, 'set_grid_idx', take_last),
          patch.object(interpreter.GridExecutor, '_restore_args_dev', lambda *_: None)):  # it copies all to itself
        kernel[(1,) * len(grid)](*args, **constants)


@contextmanager
def last_programs(module: ModuleType) -> Iterator[None]:
    """Kernels that ``module`` launches run their last program and no other."""
    with patch.object(module, 'launch', _launch_last):
        yield


def untouched(*shape: int, dtype: torch.dtype = torch.float16, channels_last: bool = False) -> torch.Tensor:
    """A tensor in memory that nobody has written to."""
    tensor = torch.empty(shape, dtype=dtype)
    return torch.empty_like(tensor, memory_format=torch.channels_last) if channels_last else tensor
