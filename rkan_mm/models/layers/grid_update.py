"""Grids that follow the data: update and refinement of a KAN layer's grid, with its functions kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import identity

from .basis import GridBasis
from .basis.grid import lasting
from .mixin import LayerMixin

ELEMENTWISE = dict(tanh=torch.tanh, none=identity)
"""Normalisations of each element, by name."""

MAX_SAMPLES = 4096
"""Of each channel; more change little and cost time."""
POINTS_PER_INTERVAL = 8
BACKGROUND = 1e-3
"""Weight of equally spaced points beside the samples: where there are no samples, functions stay as they are."""
RIDGE = 1e-12
CHUNK = 1 << 22
"""Values of functions that are held at a time."""


class GridUpdate(LayerMixin):
    """Mixin of KAN layers: what can be done with the grid of their basis."""

    coefficients_name: ClassVar[str] = 'basis_weight'

    @property
    def coefficient_parameter(self) -> nn.Parameter:
        """The coefficients of all functions as an optimizer holds them."""
        return getattr(self, self.coefficients_name)

    @lasting
    def update_grid(self, x: Tensor, uniform: float = 1.0, margin: float = 0.01, outside: float = 0.0,
                    grow: bool = False) -> bool:
        """Lay the grid over the data and fit the coefficients so that the functions stay what they are.

        With as many intervals over a wider range as before, functions that use the grid to the full cannot stay
        exactly so; with ``grow`` they do, and the number of intervals grows (see :meth:`refine_grid` for what that
        means to an optimizer).

        Args:
            x: input of the layer.
            uniform: 1 for equal intervals over the range of the data, 0 for intervals with equally many distinct
                values (the KAN paper's choice, poor for images with much background), in between their mean.
            margin: added to the range on both sides, as a part of it.
            outside: least part of the data that must lie outside of the grid, or nothing is done.
            grow: add intervals at the ends instead, until all data lie inside; ``uniform`` and ``margin`` play no part.

        Returns:
            Whether the grid was changed.

        Raises:
            TypeError: the basis has no grid.
        """
        basis = self._grid_basis('update_grid')
        samples = self._samples(x)  # (N, C)
        if basis.rows == 1:
            samples = samples.reshape(-1, 1)
        points = basis.interior().double()
        beyond = (samples < points[:, 0]) | (samples > points[:, -1])
        if not len(samples) or beyond.double().mean() < outside or (grow and not beyond.any()):
            return False
        self._change_grid((lambda: basis.grow(samples)) if grow else (lambda: basis.adapt(samples, uniform, margin)),
                          samples[::max(1, len(samples) // MAX_SAMPLES)])
        return True

    @lasting
    def refine_grid(self, grid_size: int) -> None:
        """A grid of another size over the same range, with the functions fitted; exact for splines and a multiple.

        The parameter object stays, with data of another shape: drop what an optimizer holds for it, see
        :class:`rkan_mm.engine.KANGridUpdateHook`.

        Raises:
            TypeError: the basis has no grid.
            ValueError: ``grid_size`` is too small.
        """
        basis = self._grid_basis('refine_grid')
        if grid_size < basis.least:
            raise ValueError(f'{type(self).__name__}: grid_size must be at least {basis.least}, got {grid_size}')
        self._change_grid(lambda: basis.refine(grid_size), None)

    @lasting
    def follow_grid(self, other: GridUpdate) -> None:
        """Take the grid of another such layer and fit these coefficients to it, as a moving average of it must."""
        def take() -> None:
            self.basis.grid_size = other.basis.grid_size
            self.basis.set_interior(other.basis.interior())
        self._change_grid(take, None)

    def _grid_basis(self, method: str) -> GridBasis:
        if not isinstance(self.basis, GridBasis):
            raise TypeError(f'{type(self).__name__}.{method}: basis {type(self.basis).__name__} has no grid')
        return self.basis

    def _samples(self, x: Tensor) -> Tensor:
        """What the functions see of ``x``, (N, channels) in float64; padded zeros once."""
        u = self.seen(x)
        u = u.movedim(self.channel_dim, -1).flatten(0, -2)
        u = u.double()
        if any(getattr(self, '_reversed_padding_repeated_twice', ())):
            u = torch.cat([u, torch.zeros_like(u[:1])])
        return u

    def seen(self, x: Tensor) -> Tensor:
        """What the functions see of x. The statistics of a norm layer stay as they are."""
        return ELEMENTWISE[self.normalization](x) if self.norm is None else copy.deepcopy(self.norm)(x)

    def _change_grid(self, change: Callable[[], None], samples: Tensor | None) -> None:
        old = copy.deepcopy(self.basis).double()
        change()
        new = copy.deepcopy(self.basis).double()
        transform = fit(old, new, samples)  # (rows, F_new, F_old)
        parameter = self.coefficient_parameter
        weight = self.by_channel(parameter.double())  # (C, F, ...)
        weight = torch.matmul(transform, weight)
        parameter.data = self.from_channel(weight).to(parameter)
        parameter.grad = None

    def by_channel(self, weight: Tensor) -> Tensor:
        """(out, in / groups, F, ...) -> (in, F, everything else)."""
        if getattr(self, 'transposed', False):  # (in, out / groups, F, ...)
            return weight.transpose(1, 2).flatten(2)
        weight = weight.unflatten(0, (getattr(self, 'groups', 1), -1))  # (groups, out, in, F, ...)
        return weight.movedim(1, 3).flatten(0, 1).flatten(2)

    def from_channel(self, weight: Tensor) -> Tensor:
        """The inverse of `by_channel`, for any number of functions."""
        shape = self.coefficient_parameter.shape
        if getattr(self, 'transposed', False):
            return weight.unflatten(2, (shape[1], *shape[3:])).transpose(1, 2)
        groups = getattr(self, 'groups', 1)
        weight = weight.unflatten(2, (shape[0] // groups, *shape[3:])).unflatten(0, (groups, -1))
        return weight.movedim(3, 1).flatten(0, 1)  # (groups, in, F, out, ...) -> (out, in, F, ...)

    @lasting
    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """A checkpoint may be pruned, locked to formulas, or have a finer grid."""
        parameter = self.coefficient_parameter
        if f'{prefix}mask' in state_dict and self.mask is None:
            self.mask = torch.ones_like(state_dict[f'{prefix}mask'], device=parameter.device)
        stored, grid = (state_dict.get(f'{prefix}{name}') for name in (self.coefficients_name, 'basis.grid'))
        if stored is not None and grid is not None and stored.shape != parameter.shape:
            parameter.data = parameter.new_empty(stored.shape)
        if f'{prefix}locked.places' in state_dict:
            from .locked import lock_for_loading
            lock_for_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def fit(old: GridBasis, new: GridBasis, samples: Tensor | None) -> Tensor:
    """Least-squares coefficients of the old functions in the new ones, (rows, F_new, F_old).

    Fitted at the samples, (N, rows), and with little weight at points all over the new grid; at these alone without
    samples.
    """
    low, high = new.interior()[:, 0], new.interior()[:, -1]
    count = POINTS_PER_INTERVAL * max(old.num_functions, new.num_functions) + 1
    steps = torch.linspace(0, 1, count, dtype=low.dtype, device=low.device)
    points = low + (high - low) * steps[:, None]  # (n, rows)
    gram = right = low.new_zeros(())
    for x, weight in ((points, BACKGROUND if samples is not None else 1.0), (samples, 1.0)):
        if x is None:
            continue
        rows = max(1, CHUNK // (x.shape[1] * new.num_functions))
        for part in x.split(rows):
            values_new, values_old = new(part).transpose(0, 1), old(part).transpose(0, 1)  # (rows, n, F)
            factor = weight / len(x)
            gram = gram + factor * values_new.mT @ values_new
            right = right + factor * values_new.mT @ values_old
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ridge = RIDGE * scale * torch.eye(new.num_functions, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, right)
