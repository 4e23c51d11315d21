"""What the TorchScript tracer, and the ONNX exporter built on it, are not to see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        with torch.no_grad():
            yield
    finally:
        torch._C._set_tracing_state(state)


def static_shape(x: Tensor) -> torch.Size:
    """``x.shape``, numbers also where a tracer makes tensors of them: for what does not change, as channels."""
    if not torch.jit.is_tracing():
        return x.shape
    with _untraced():
        return x.shape


def as_constant(function: Callable, *args) -> Any:
    """``function(*args)``, a tensor, None or a tuple of them, which a tracer takes as numbers."""
    if not torch.jit.is_tracing():
        return function(*args)
    with _untraced():
        values = function(*args)
        if isinstance(values, tuple):
            return tuple(None if value is None else value.detach() for value in values)
        return None if values is None else values.detach()


def as_type_of(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype and on the device of ``like``: in a trace of TorchScript, of what ``like`` is when it runs."""
    return x.type_as(like) if torch.jit.is_tracing() else x.to(like)


def folded(function: Callable, *args, constant: bool) -> Any:
    """``function(*args)``, which depends on weights alone; the TorchScript exporter to ONNX takes it as numbers.

    It would write most such operations into the file, to be run at each call. The exporter by ``torch.export`` folds
    them itself.

    Args:
        function: gives a tensor, None, or a tuple of them.
        args: its arguments.
        constant: whether the weights are constant, as they are in eval mode.
    """
    folds = constant and torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()
    return as_constant(function, *args) if folds else function(*args)
