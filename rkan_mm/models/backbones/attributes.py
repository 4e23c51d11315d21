"""A module whose attributes are those of the backbone in it, too: what recipes ask of a backbone and set in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

from mmengine.model import BaseModule
from torch import nn

from rkan_mm.teaching import teach

from .layer_decay import get_layer_depth, group_matcher, no_weight_decay
from .rfp import rfp_forward

OWN = ('backbone', 'bridges', 'num_classes')
"""What a RKANet has or lacks by itself, whatever the inner backbone has: its modules, for the backbone may be one, too;
and what mmdet's NumClassCheckHook asks all modules for but SSD's VGG, which it knows by its class."""

ADAPTED: dict[str, Any] = dict(get_layer_depth=get_layer_depth, group_matcher=group_matcher,
                               no_weight_decay=no_weight_decay, rfp_forward=rfp_forward)
"""Methods of backbones that a RKANet has in its own form, where the inner backbone has them."""


def _registers(method: Callable) -> Callable:
    """A method of nn.Module by which something gets a name, at the module that has the name."""
    @wraps(method)
    def register(self: BackboneAttributes, name: str, *args: Any, **kwargs: Any) -> None:
        if self._is_inners(name):
            return getattr(self.backbone, method.__name__)(name, *args, **kwargs)
        with self._alone():  # whatever the inner backbone has got since
            return method(self, name, *args, **kwargs)

    return register


class BackboneAttributes(BaseModule):
    """Attributes that it does not have are those of ``self.backbone``, to read, to write, to register and to delete.

    To write and to register, these are what the backbone had when it came: what others hang on each module of a model
    belongs to each alone.
    """

    _inner_names: frozenset[str] = frozenset()

    def know_backbone(self) -> None:
        """Take the attributes that the backbone has now for its own."""
        inner = self._modules['backbone']
        self.__dict__['_inner_names'] = frozenset(
            name for names in (inner.__dict__, inner._modules, inner._parameters, inner._buffers) for name in names)

    def settle(self) -> None:
        """Before something may run the backbone."""

    def _is_inners(self, name: str) -> bool:
        inner = self.__dict__.get('_modules', {}).get('backbone')
        return inner is not None and not self._is_own(name) and (name in self._inner_names
                                                                 or hasattr(type(inner), name))

    def _is_own(self, name: str) -> bool:
        return (name in OWN or name.startswith('_') or hasattr(type(self), name)
                or any(name in names for names in (self.__dict__, self._modules, self._parameters, self._buffers)))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.__dict__['_is_alone'] = True
        try:
            yield
        finally:
            del self.__dict__['_is_alone']

    register_buffer = _registers(nn.Module.register_buffer)
    register_parameter = _registers(nn.Module.register_parameter)
    add_module = _registers(nn.Module.add_module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get('_modules', {}).get('backbone')
            private = name.startswith('__') or (name.startswith('_') and not hasattr(type(inner), name))
            if inner is None or name in OWN or private or '_is_alone' in self.__dict__:
                raise
        found = getattr(inner, name)
        if name in ADAPTED:
            return ADAPTED[name].__get__(self)
        with suppress(AttributeError):  # a stage that is about to be replaced; forward will tell
            self.settle()  # a method may run the backbone
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_inners(name):
            setattr(self.backbone, name, value)
        else:
            super().__setattr__(name, value)
            if name == 'backbone':
                self.know_backbone()

    def __delattr__(self, name: str) -> None:
        inner = self._modules.get('backbone')
        if inner is None or any(name in own for own in (self.__dict__, self._modules, self._parameters, self._buffers)):
            super().__delattr__(name)
        else:
            delattr(inner, name)


def teach_lora() -> None:
    """Let mmpretrain's LoRAModel, where it is imported, ask a backbone in the way in which it finds all attributes."""
    teach(getattr(sys.modules.get('mmpretrain.models.peft.lora'), 'LoRAModel', None), '__getattr__', _attribute)


def _attribute(plain: Callable, lora: nn.Module, name: str) -> Any:
    inner = lora.__dict__.get('_modules', {}).get('module')
    try:
        return plain(lora, name)
    except AttributeError:
        if not isinstance(inner, BackboneAttributes):
            raise
    return getattr(inner, name)
