"""Our layers in a symbolic trace of torch.fx: one node each, as torch's own layers are."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def layer_input(args: tuple, kwargs: dict) -> Any:
    """What a hook's layer is called with."""
    return args[0] if args else kwargs['input']


def is_traced(x: Any) -> bool:
    """Whether x stands for a tensor in a symbolic trace."""
    return isinstance(x, Proxy)


def as_leaf(module: nn.Module, x: Proxy, *args: Any) -> Proxy:
    """The call of a module as a node of the trace; what it does inside is not looked at."""
    return x.tracer.create_proxy('call_module', x.tracer.path_of_module(module), (x, *args), {})
