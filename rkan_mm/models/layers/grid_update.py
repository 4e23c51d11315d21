"""Grids that follow the data: update and refinement of a KAN layer's grid, with its functions kept."""

from __future__ import annotations

import contextlib
import copy
import logging
import operator
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from rkan_mm.models.ops import identity

from .basis import GridBasis
from .basis.grid import lasting
from .basis.renew import renew
from .grid_fit import MAX_SAMPLES, Drawn, draw, fit, gather, some
from .tied import Tied, mates, same_grid, state_of, take_grid

ELEMENTWISE = dict(tanh=torch.tanh, none=identity)
"""Normalisations of each element, by name."""

MAX_GRID_SIZE = 512
"""To which a grid grows by itself; a single far value would ask for any number of intervals."""


class GridUpdate(Tied):
    """Mixin of KAN layers: what can be done with the grid of their basis."""

    coefficients_name: ClassVar[str] = 'basis_weight'
    grid_changes = 0
    """How often the grid was changed; what is computed again for a backward pass needs that of its forward pass."""

    @property
    def coefficient_parameter(self) -> nn.Parameter:
        """The coefficients of all functions as an optimizer holds them."""
        return getattr(self, self.coefficients_name)

    @lasting
    def update_grid(self, x: Tensor | Sequence[Tensor | Drawn], uniform: float = 1.0, margin: float = 0.01,
                    outside: float = 0.0, grow: bool = False, followers: Sequence[GridUpdate] = ()) -> bool:
        """Lay the grid over the data and fit the coefficients so that the functions stay what they are.

        With as many intervals over a wider range as before, functions that use the grid to the full cannot stay
        exactly so; with ``grow`` they do, and the number of intervals grows (see :meth:`refine_grid` for what that
        means to an optimizer). Gradients that the coefficients have are dropped: step first where some are accumulated.

        Args:
            x: input of the layer, or several, or what `draw` keeps of them. inf and NaN are left out; the log counts.
            uniform: 1 for equal intervals over the range of the data, 0 for intervals with equally many distinct
                values (the KAN paper's choice, poor for images with much background), in between their mean.
            margin: added to the range on both sides, as a part of it.
            outside: least part of the data that must lie outside of the grid, or nothing is done.
            grow: add intervals at the ends instead, until all data lie inside; ``uniform`` and ``margin`` play no part.
            followers: layers whose coefficients are moving averages of this one's; the same is done to them.

        Returns:
            Whether the grid was changed. It was not where the new one would have no finite points apart from each
            other, or the coefficients no finite values.

        Raises:
            TypeError: the basis has no grid, or its coefficients are no parameter.
            ValueError: another layer has the same coefficients on another grid.
            RuntimeError: no input of the layer, as from the ordinary layer.
        """
        basis = self._grid_basis('update_grid')
        inputs = x if isinstance(x, Sequence) else [x]
        samples, ends = gather([each if isinstance(each, Drawn) else self._rows(each) for each in inputs])
        points = basis.interior().double()
        samples, finite = self._finite(samples, points)
        if self._pads:
            seen = finite.any(0, keepdim=True)
            samples = torch.cat([samples, torch.where(seen, 0.0, (points[:, 0] + points[:, -1]) / 2)])
            finite = torch.cat([finite, seen])
        beyond = (samples < points[:, 0]) | (samples > points[:, -1])
        if not finite.any() or beyond.sum() / finite.sum() < outside:
            return False
        samples = torch.cat([samples, torch.where(ends.isfinite(), ends, samples[:1])]) if len(ends) else samples
        if grow and not ((samples < points[:, 0]) | (samples > points[:, -1])).any():
            return False
        if grow and (size := sum(basis.growth(samples)) + basis.grid_size) > MAX_GRID_SIZE:
            self._say(f'to grow over data from {samples.min():.3g} to {samples.max():.3g} it would need {size} '
                      f'intervals, and {MAX_GRID_SIZE} are the limit')
            return False

        def adapt() -> None:
            basis.adapt(samples, uniform, margin)
            blind = ~finite.any(0)  # channels without any data stay as they are
            if blind.any():
                basis.set_interior(torch.where(blind[:, None], points, basis.interior().double()))

        return self._change_grid((lambda: basis.grow(samples)) if grow else adapt,
                                 some(samples, MAX_SAMPLES), followers)

    @lasting
    def draw(self, x: Tensor) -> Drawn:
        """What `update_grid` takes in the place of an input, in little memory; RuntimeError as there."""
        return draw(self._rows(x).samples)

    @lasting
    def refine_grid(self, grid_size: int, followers: Sequence[GridUpdate] = ()) -> None:
        """A grid of another size over the same range, with the functions fitted; exact for splines and a multiple.

        The parameter object stays, with data of another shape: drop what an optimizer holds for it, see
        :class:`rkan_mm.engine.KANGridUpdateHook`. ``followers`` as in :meth:`update_grid`.

        Raises:
            TypeError: the basis has no grid, its coefficients are no parameter, or ``grid_size`` is no integer.
            ValueError: ``grid_size`` is too small, or another layer has the same coefficients on another grid.
        """
        basis, grid_size = self._grid_basis('refine_grid'), operator.index(grid_size)
        if grid_size < basis.least:
            raise ValueError(f'{type(self).__name__}: grid_size must be at least {basis.least}, got {grid_size}')
        self._change_grid(lambda: basis.refine(grid_size), None, followers)

    @lasting
    def follow_grid(self, other: GridUpdate) -> None:
        """Take the grid of another such layer and fit these coefficients to it, as a moving average of it must."""
        self._change_grid(lambda: take_grid(self.basis, other.basis), None, must=True)

    def _grid_basis(self, method: str) -> GridBasis:
        if not isinstance(self.basis, GridBasis):
            raise TypeError(f'{type(self).__name__}.{method}: basis {type(self.basis).__name__} has no grid')
        if self.coefficients_name not in self._parameters:
            raise TypeError(f'{type(self).__name__}.{method}: its {self.coefficients_name} are computed from others, '
                            'by a parametrization or pruning of torch.nn.utils; remove that before the grid is changed')
        return self.basis

    def check_samples(self, x: Tensor) -> None:
        """Let the ordinary layer of this shape raise what it has against samples; any floating dtype passes."""
        raise NotImplementedError

    def _rows(self, x: Tensor) -> Drawn:
        self.check_samples(x)
        part = (self._samples(x) if x.numel() else x).reshape(-1, self.basis.rows)
        return Drawn(part, len(part))

    def _samples(self, x: Tensor) -> Tensor:
        """What the functions see of ``x``, (N, channels), but for padded zeros."""
        return self.seen(self._batched(x)).movedim(self.channel_dim, -1).flatten(0, -2)

    @property
    def _pads(self) -> bool:
        return any(getattr(self, '_reversed_padding_repeated_twice', ()))

    def _batched(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0) if x.dim() == getattr(self, 'spatial', 0) + 1 else x

    def _finite(self, samples: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Samples with others of their channel in the place of inf and NaN, (N, rows), and which of them were finite.

        A channel without any has the middle of its grid.
        """
        finite = samples.isfinite()
        if finite.all():
            return samples, finite
        count = int((~finite).sum())
        print_log(f'{type(self).__name__}.update_grid: {count} of {finite.numel()} values are inf or NaN, and left out',
                  'current', logging.WARNING)
        first = samples.gather(0, finite.long().argmax(0, keepdim=True))
        first = torch.where(finite.any(0), first, (points[:, 0] + points[:, -1]) / 2)
        return torch.where(finite, samples, first), finite

    def seen(self, x: Tensor) -> Tensor:
        """What the functions see of x. The statistics of a norm layer stay as they are.

        One over all processes has those of this one here, since others may not look with it.
        """
        norm = self.norm
        if norm is None:
            return ELEMENTWISE[self.normalization](x)
        norm = copy.deepcopy(revert_sync_batchnorm(norm) if isinstance(norm, nn.SyncBatchNorm) else norm)
        held = (t.dtype for t in (*norm.parameters(), *norm.buffers()) if t.is_floating_point())
        return norm(x.to(next(held, x.dtype)))

    def _change_grid(self, change: Callable[[], None], samples: Tensor | None,
                     followers: Sequence[GridUpdate] = (), must: bool = False) -> bool:
        """With ``must`` also where points lie apart no longer, as those of a layer may whose grid is trained."""
        before, old = state_of(self.basis), copy.deepcopy(self.basis).double()
        alike = [follower for follower in followers if same_grid(follower.basis, self.basis)]
        tied = {each: mates(each) for each in (self, *followers)}
        together = dict.fromkeys((self, *alike, *(mate for each in (self, *alike) for mate in tied[each])))
        change()
        new = copy.deepcopy(self.basis).double()
        transform = None
        if must or _apart(self.basis) or not _apart(old):
            with contextlib.suppress(torch.linalg.LinAlgError):
                transform = fit(old, new, samples)  # (rows, F_new, F_old)
        weight = None if transform is None else self._fitted(transform)
        if weight is None or not weight.isfinite().all():
            self.basis.grid_size = old.grid_size
            for tensor, data in before:
                renew(tensor, data)
            self.basis.refresh()
            self._say(f'over these data its points would not be apart from each other in {self.basis.grid.dtype}'
                      if self.coefficient_parameter.isfinite().all() else 'the coefficients are inf or NaN')
            return False
        fitted = {}  # by parameter, each of which is changed once; averages stay averages, for this is linear
        for each in together:
            fitted.setdefault(id(each.coefficient_parameter), (each.coefficient_parameter, each._fitted(transform)))
        for each in together:
            each.grid_changes += 1
            if each.basis is not self.basis:
                take_grid(each.basis, self.basis)
        for parameter, data in fitted.values():
            renew(parameter, data)
        for follower in followers:
            if follower not in together:
                follower.follow_grid(self)
        return True

    def _say(self, why: str) -> None:
        print_log(f'{type(self).__name__}: the grid stays as it was; {why}', 'current', logging.WARNING)

    def _fitted(self, transform: Tensor) -> Tensor:
        """The coefficients times (rows, F_new, F_old)."""
        parameter = self.coefficient_parameter
        weight = torch.matmul(transform.to(parameter.device), self.by_channel(parameter.double()))  # (C, F, ...)
        return self.from_channel(weight).to(parameter)

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
        stored, grid = (state_dict.get(f'{prefix}{name}') for name in (self.coefficients_name, 'basis.grid'))
        if grid is not None and isinstance(self.basis, GridBasis):
            if not (self.basis.can_become(grid.shape) and self._go_together(stored, grid)):
                self.basis.keeps_size = True
                if stored is not None and stored.shape == parameter.shape:  # of other functions, which are as many
                    state_dict = {name: value for name, value in state_dict.items() if value is not stored}
            elif stored is not None and stored.shape != parameter.shape:
                renew(parameter, parameter.new_empty(stored.shape))
        if f'{prefix}locked.places' in state_dict:
            from .locked import lock_for_loading
            lock_for_loading(self, state_dict, prefix)
        elif stored is not None and getattr(self, 'locked', None) is not None:
            from .locked import unlock
            unlock(self)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        unexpected, errors = args[3:5]
        if f'{prefix}mask' in unexpected:
            unexpected.remove(f'{prefix}mask')
        mask, shape = state_dict.get(f'{prefix}mask'), self._of_each_function(parameter.shape)
        if mask is None or mask.shape == shape:
            self._load_mask(state_dict, prefix)
        else:
            errors.append(f'size mismatch for {prefix}mask: copying a param with shape {mask.shape} from checkpoint, '
                          f'the shape in current model is {torch.Size(shape)}.')

    @property
    def _dim_of_functions(self) -> int:
        return 0 if self.coefficients_name == 'weight' else 2

    def _of_each_function(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the coefficients without the dimension of the functions: that of the ordinary layer's weight."""
        dim = self._dim_of_functions
        return (*shape[:dim], *shape[dim + 1:])

    def _go_together(self, stored: Tensor | None, grid: Tensor) -> bool:
        """Whether coefficients of a checkpoint are the layer's, of as many functions as its basis has on that grid.

        Of another basis, or of splines of another order, there are more or fewer. Without any, the layer's own stay.
        """
        own, dim, basis = self.coefficient_parameter.shape, self._dim_of_functions, self.basis
        functions = basis.num_functions
        if stored is not None:
            shape = stored.shape
            if not (len(shape) == len(own) > dim and self._of_each_function(shape) == self._of_each_function(own)):
                return False
            functions = shape[dim]
        return functions - grid.shape[1] == basis.num_functions - basis.grid.shape[1]


def _apart(basis: GridBasis) -> bool:
    """Whether each point lies behind the one before it, far enough for functions to have values."""
    points = basis.interior()
    if not all(data.isfinite().all() for _, data in state_of(basis)) or not (points.diff(dim=1) > 0).all():
        return False
    return bool(basis(points.mT.to(torch.promote_types(points.dtype, torch.float32))).isfinite().all())
