"""Which KAN layers are moving averages of which: those of EMA models, mean teachers and momentum encoders."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection

from torch import nn

from .grid_update import GridUpdate
from .sparsity import Sparsity


def new_origin() -> str:
    """A mark of a layer, which its copies share."""
    return uuid.uuid4().hex


def followers(model: nn.Module, *averages: nn.Module,
              without_grad: Collection[nn.Module] = (),
              learning: Collection[nn.Module] = ()) -> dict[nn.Module, list[nn.Module]]:
    """For each KAN layer of a model that is trained, the layers that are moving averages of it.

    Averages get no gradients. They are copies of the layer (BYOL, MoCo, all of mmengine's averaged models); or they
    lie in a part of the same structure and of another name (``teacher`` and ``student``). Copies by number, as in a
    list, are the blocks of one net, as in a `nn.TransformerEncoder`.

    Args:
        model: holds the trained layers, and perhaps averages.
        averages: further models, of averages alone.
        without_grad: layers that run without gradients, whatever their parameters say.
        learning: layers that are trained, though their parameters are frozen at the moment.
    """
    named = [(tuple(name.split('.')), layer) for name, layer in model.named_modules() if _is_kan(layer)]
    trained = {name: layer for name, layer in named
               if (_needs_grad(layer) or layer in learning) and layer not in without_grad}
    frozen = [(name, layer) for name, layer in named if name not in trained]
    found = {layer: [] for layer in trained.values()}
    for average in averages:
        frozen += [(tuple(name.split('.')), layer) for name, layer in average.named_modules() if _is_kan(layer)]
    for name, layer in frozen:
        copies = [other for other, source in trained.items()
                  if source.origin == layer.origin and not _are_listed(name, other)]
        sources = copies or [other for other in trained if _is_role(model, name, other, without_grad)]
        if sources:
            source = max(sources, key=lambda other: _common_end(name, other))
            if not any(_are_listed(other, source) and _common_end(name, other) > _common_end(name, source)
                       for other, _ in named):  # else it averages that block, which is frozen
                found[trained[source]].append(layer)
    return found


def _is_kan(module: nn.Module) -> bool:
    return isinstance(module, GridUpdate) and isinstance(module, Sparsity)


def _needs_grad(layer: nn.Module) -> bool:
    return layer.coefficient_parameter.requires_grad


def _common_end(name: tuple[str, ...], other: tuple[str, ...]) -> int:
    same = [a == b for a, b in zip(reversed(name), reversed(other), strict=False)]
    return same.index(False) if False in same else len(same)


def _are_listed(name: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two names differ, and in parts alone that are numbers."""
    return name != other and len(name) == len(other) and all(
        a == b or (a.isdigit() and b.isdigit()) for a, b in zip(name, other, strict=True))


def _is_role(model: nn.Module, name: tuple[str, ...], other: tuple[str, ...],
             without_grad: Collection[nn.Module]) -> bool:
    """Whether two layers play the same part in two networks of the same structure, the first of them frozen.

    Names that differ in their numbers alone are those of stages.
    """
    apart = [i for i, (a, b) in enumerate(zip(name, other, strict=False)) if a != b]
    if len(name) != len(other) or len(apart) != 1:
        return False
    end = apart[0] + 1
    if re.sub(r'\d', '', name[end - 1]) == re.sub(r'\d', '', other[end - 1]):
        return False
    root, source = (model.get_submodule('.'.join(each[:end])) for each in (name, other))
    shapes = [{key: value.shape for key, value in each.named_parameters()} for each in (root, source)]
    frozen = any(layer in without_grad for layer in root.modules()) or not any(
        p.requires_grad for p in root.parameters())
    return frozen and shapes[0] == shapes[1]
