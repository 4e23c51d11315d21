"""Hooks that hang at the name of a module, and move on when another module takes that name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from rkan_mm.models.layers.locks import open_after_fork
from rkan_mm.models.layers.symbolic_trace import is_traced

LOCK = open_after_fork()


class Actor(Protocol):
    """What acts at a place: bound to it, so that a copy of the model has actors of its own."""

    def before(self, name: str, args: tuple, kwargs: dict) -> Any:
        """See :meth:`torch.nn.Module.register_forward_pre_hook`."""

    def after(self, name: str, args: tuple, kwargs: dict, out: Any) -> Any:
        """See :meth:`torch.nn.Module.register_forward_hook`."""


class Place:
    """A module by its name in a model, and what acts before or after it.

    Hooks hang on an object. Conversions put others into its place: SyncBN and back, norms fused into convolutions,
    wrappers of FSDP and of activation checkpointing; or they clear all hooks. So before each forward pass of a module
    that stays, its owner calls :meth:`settle`, which finds the name again and takes the hooks along. Two models that
    share a module take turns at it.

    Args:
        name: of the module, below the root that :meth:`settle` is given.
        actor: what acts.
        before, after: at which sides of the module.
    """

    ahead_of: tuple[int, ...] = ()
    """Ids of hooks that leave what the module gives as it is, and are to see what the actor makes of it."""

    def __init__(self, name: str, actor: Actor, before: bool = False, after: bool = False) -> None:
        self.name, self.actor = name, actor
        self._sides = before, after
        self._token = uuid.uuid4().hex  # a copy of the module alone brings a copy of this, under the same token
        self._module: nn.Module | None = None
        self._root: nn.Module | None = None
        self._handles: list[RemovableHandle] = []  # unpickled, they see to it that no hook to come takes their ids
        self._keys: list[int] = []  # those ids: in a handle, torch.compile cannot look at them

    def settle(self, root: nn.Module) -> None:
        """Hang at the module that has the name now.

        Raises:
            AttributeError: none has it.
        """
        module, self._root = root.get_submodule(self.name), root
        if self._hangs_at(module):
            return
        with LOCK:  # several threads may be the first
            if self._hangs_at(module):
                return
            if self._module is not None:
                self._clear(self._module)
            for each in module.modules():  # copies of the old module may be among them
                self._clear(each)
            for other in places_of(module):
                if other._is_in_another_model(root):  # which settles, too, when its turn comes
                    other.leave()
            before, after = self._sides
            self._handles = [register(hook, with_kwargs=True) for wanted, register, hook in (
                (before, module.register_forward_pre_hook, self._before),
                (after, module.register_forward_hook, self._after)) if wanted]
            for key in self.ahead_of if after else ():
                if key in module._forward_hooks:
                    module._forward_hooks.move_to_end(key)
            self._keys = [handle.id for handle in self._handles]
            self._module = module

    def _is_in_another_model(self, root: nn.Module) -> bool:
        """Whether it is neither around that root nor within it, and only shares a module with it."""
        mine = self._root
        return mine is not None and not any(module is root for module in mine.modules()) and not any(
            module is mine for module in root.modules())

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_root': None}  # a copy of the actor alone is no reason to copy the model

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._keys = [handle.id for handle in self._handles]  # a model that was saved earlier has none

    def leave(self) -> None:
        """Hang nowhere."""
        if self._module is not None:
            self._clear(self._module)
        self._module = None

    def _hangs_at(self, module: nn.Module) -> bool:
        before, after = module._forward_pre_hooks, module._forward_hooks
        return self._is_mine(module) and all(key in before or key in after for key in self._keys)

    def _is_mine(self, module: nn.Module) -> bool:
        """`torch.export` shows a model that has a module twice through stand-ins, which share the module's dict."""
        mine = self._module
        return module is mine or (mine is not None and module.__dict__ is mine.__dict__)

    def _clear(self, module: nn.Module) -> None:
        for hooks, flags in ((module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
                             (module._forward_hooks, module._forward_hooks_with_kwargs)):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, '__self__', None)
                if isinstance(owner, Place) and owner._token == self._token:
                    del hooks[key]
                    flags.pop(key, None)

    def _before(self, module: nn.Module, *args) -> Any:
        return self.actor.before(self.name, *args) if self._is_mine(module) else None

    def _after(self, module: nn.Module, *args) -> Any:
        # others may have moved the hook: torch's fuse_modules takes those of a norm to the convolution before it
        return self.actor.after(self.name, *args) if self._is_mine(module) else None


def places_of(module: nn.Module) -> list[Place]:
    """Those that hang at a module."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    owners = (getattr(hook, '__self__', None) for hook in hooks)
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, Place)))


def show_places(tracer: torch.fx.Tracer) -> None:
    """Let a symbolic trace see what acts at modules that are leaves to it, whose hooks it would not run."""
    if '_call_without_places' not in tracer.__dict__:
        tracer._call_without_places = tracer.call_module
        tracer.call_module = lambda *args: _call_module(tracer, *args)


def _call_module(tracer: torch.fx.Tracer, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
    places = places_of(module)
    if not places or not tracer.is_leaf_module(module, tracer.path_of_module(module)):
        return tracer._call_without_places(module, forward, args, kwargs)
    for place in places:
        if place._sides[0]:
            args, kwargs = place.actor.before(place.name, args, kwargs) or (args, kwargs)
    leaf = tracer.create_proxy('get_attr', tracer.path_of_module(module), (), {})
    out = tracer.create_proxy('call_function', call_bare, (leaf, *args), kwargs)
    for place in places:
        if place._sides[1]:
            out = place.actor.after(place.name, args, kwargs, out)
    return out


def call_bare(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A module without its hooks. When a graph with it is traced again, the same node."""
    if args and is_traced(args[0]):
        leaf = args[0].tracer.create_proxy('get_attr', args[0].tracer.path_of_module(module), (), {})
        return args[0].tracer.create_proxy('call_function', call_bare, (leaf, *args), kwargs)
    return module.forward(*args, **kwargs)
