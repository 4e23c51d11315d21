"""Whether what a kernel reads and writes lies in its arguments, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.runtime import interpreter


class _Watched:
    """The interpreter's memory, with a look at each address."""

    def __init__(self, memory: Any) -> None:
        self.memory, self.ranges, self.seen = memory, [], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def _look(self, addresses: np.ndarray, mask: np.ndarray, dtype: Any) -> None:
        met = addresses.reshape(-1)[np.broadcast_to(mask, addresses.shape).reshape(-1).astype(bool)].astype(np.int64)
        inside = np.zeros(len(met), bool)
        for start, end in self.ranges:
            inside |= (met >= start) & (met + np.dtype(dtype).itemsize <= end)
        assert inside.all(), f'{(~inside).sum()} of {len(met)} elements lie outside of all arguments'
        self.seen += len(met)

    def load(self, addresses, mask, other, dtype):
        self._look(addresses, mask, dtype)
        return self.memory.load(addresses, mask, other, dtype)

    def store(self, addresses, value, mask):
        self._look(addresses, mask, value.dtype)
        return self.memory.store(addresses, value, mask)


@contextmanager
def watched() -> Iterator[_Watched]:
    """Kernels that are launched meanwhile fail where they touch what is not theirs."""
    memory, copied = _Watched(interpreter._interpreter), interpreter.GridExecutor._init_args_hst

    def begin(self, *args):
        result = copied(self, *args)
        memory.ranges = [(t.data_ptr(), t.data_ptr() + t.untyped_storage().nbytes() - t.storage_offset() * t.itemsize)
                         for t in result[0] if isinstance(t, torch.Tensor)]
        return result

    with (patch.object(interpreter, '_interpreter', memory),
          patch.object(interpreter.GridExecutor, '_init_args_hst', begin)):
        yield memory
