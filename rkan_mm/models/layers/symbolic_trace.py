"""Our layers in a symbolic trace of torch.fx: one node each, as torch's own layers are."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError


def layer_input(args: tuple, kwargs: dict) -> Any:
    """What a hook's layer is called with."""
    return args[0] if args else kwargs['input']


def is_traced(x: Any) -> bool:
    """Whether x stands for a tensor in a symbolic trace."""
    return isinstance(x, Proxy)


def as_leaf(module: nn.Module, x: Proxy, *args: Any) -> Proxy:
    """The call of a module as a node of the trace; what it does inside is not looked at.

    Raises:
        TraceError: the module is not a part of what is traced, but all of it.
    """
    if module is getattr(x.tracer, 'root', None):
        raise TraceError(f'{type(module).__name__}: a layer is one node of a symbolic trace, so it cannot be traced '
                         'alone. Trace a model that holds it, e.g. nn.Sequential(layer)')
    return x.tracer.create_proxy('call_module', x.tracer.path_of_module(module), (x, *args), {})
