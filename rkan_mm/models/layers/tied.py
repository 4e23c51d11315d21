"""KAN layers that share coefficients or grids with others, as by tied weights: what changes one must change all."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from .basis import GridBasis
from .basis.renew import renew
from .locks import open_after_fork
from .mixin import LayerMixin

if TYPE_CHECKING:
    from .grid_update import GridUpdate

T = TypeVar('T', bound='Tied')
_LAYERS: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
"""In the order in which they came, which is the same in all processes of a run: these send each other what changes."""
_LOCK = open_after_fork()


class Tied(LayerMixin):
    """Mixin of KAN layers, all of which are known here, however they were made: built, copied or loaded."""

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        layer = super().__new__(cls)
        with _LOCK:
            _LAYERS[layer] = None
        return layer


def every_layer() -> tuple[GridUpdate, ...]:
    """All KAN layers that are alive, perhaps still in their constructor."""
    with _LOCK:
        return tuple(_LAYERS)


def tied_to(*layers: GridUpdate) -> list[GridUpdate]:
    """Other layers with the same coefficients or grids as one of these, by one step or several."""
    found, others = list(layers), {layer: _tensors(layer) for layer in every_layer()}
    for layer in found:  # which grows
        own = _tensors(layer)
        found += [other for other, tensors in others.items() if own & tensors and other not in found]
    return found[len(layers):]


def mates(layer: GridUpdate) -> list[GridUpdate]:
    """Those of `tied_to`, which are to be changed with this layer.

    Raises:
        ValueError: one of them has other functions for the same coefficients.
    """
    layers = tied_to(layer)
    for other in layers:
        alike = type(other.basis) is type(layer.basis) and same_grid(other.basis, layer.basis) and (
            layer.basis.rows == 1 or _layout(other) == _layout(layer))
        if not alike or other.coefficients_name != layer.coefficients_name:
            raise ValueError(f'{type(layer).__name__}: it shares its coefficients or its grid with a '
                             f'{type(other).__name__} whose functions are others, and would change these. Untie them, '
                             'or give them one grid (basis), before the grid is changed')
    return layers


def _layout(layer: GridUpdate) -> tuple[bool, int]:
    return getattr(layer, 'transposed', False), getattr(layer, 'groups', 1)


def _tensors(layer: nn.Module) -> set[int]:
    modules = vars(layer).get('_modules', {})  # there are none while a layer is being built
    if 'basis' not in modules:
        return set()
    basis, coefficients = modules['basis'], layer._parameters.get(layer.coefficients_name)
    return {id(t) for t in (*basis.parameters(), *basis.buffers(), coefficients) if t is not None}


def state_of(basis: GridBasis) -> list[tuple[Tensor, Tensor]]:
    """Its parameters and buffers, each with a copy of its numbers."""
    return [(tensor, tensor.detach().clone()) for tensor in (*basis.parameters(), *basis.buffers())]


def same_grid(basis: GridBasis, other: GridBasis) -> bool:
    return all(ours.shape == theirs.shape and ours.detach().equal(theirs.detach().to(ours))
               for (ours, _), (theirs, _) in zip(state_of(basis), state_of(other), strict=True))


def take_grid(basis: GridBasis, other: GridBasis) -> None:
    """Give a basis the grid of another one of its kind."""
    basis.grid_size = other.grid_size
    for (tensor, _), (theirs, _) in zip(state_of(basis), state_of(other), strict=True):
        renew(tensor, theirs.detach().clone())
    basis.refresh()
