"""What bases on a grid have in common."""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from .base import Basis
from .renew import has_numbers, renew

MIN_INTERVAL = 1e-3
"""Least width of an interval of an adapted grid, as a part of the mean one."""
MIN_SPAN = 1e-12
"""Least range of samples, as a part of the grid's before; slopes would overflow on less, and it may be rounding."""
MAX_DISTINCT = 1 << 20
"""Of the samples' values, for their quantiles, which torch takes of 16 million at most."""
T = TypeVar('T')


def lasting(method: Callable[..., T]) -> Callable[..., T]:
    """For what changes parameters: run it without autograd and autocast, so that what it makes serves in every mode.

    What is made in ``torch.inference_mode`` could not be trained later. Modules that were built there stay there.
    """
    @functools.wraps(method)
    def run(self: nn.Module, *args, **kwargs) -> T:
        own = *self.parameters(), *self.buffers()
        built_there = any(t.is_inference() for t in own)
        device = next((t.device.type for t in own if not t.is_meta), 'cpu')
        with torch.inference_mode(built_there), torch.no_grad(), torch.autocast(device, enabled=False):
            return method(self, *args, **kwargs)
    return run


class GridBasis(Basis):
    """Functions around the points of a grid, which can follow the data and be refined.

    Args:
        grid_size: number of intervals or of points, as the subclass says.
        grid_range: the interval on which the grid lies at first.
        per_channel: whether every input channel gets a grid of its own.

    Raises:
        ValueError: too few points, or an empty range.
    """

    least = 1
    channels = 1
    """Of the layer's inputs, each of which may have a grid."""
    keeps_size: bool
    """Whether the layer refuses what comes with the next grid."""

    def __init__(self, grid_size: int, grid_range: tuple[float, float], per_channel: bool) -> None:
        super().__init__()
        name, (low, high) = type(self).__name__, grid_range
        if not isinstance(grid_size, int) or grid_size < self.least:
            raise ValueError(f'{name}: grid_size must be an integer of at least {self.least}, got {grid_size!r}')
        if not low < high:
            raise ValueError(f'{name}: grid_range must be (low, high) with low < high, got {grid_range!r}')
        self.grid_size, self.per_channel = grid_size, per_channel
        self.grid_range: tuple[float, float] = (low, high)

    @abstractmethod
    def interior(self) -> Tensor:
        """The grid's points from its lower to its upper end, (rows, n)."""

    @abstractmethod
    def set_interior(self, points: Tensor) -> None:
        """Lay the grid through other points, (rows, n). Another n refines it, and coefficients must be fitted anew."""

    def refresh(self) -> None:
        """To be called after the grid was written to by others."""

    @lasting
    def reset_parameters(self) -> None:
        rows = self.rows
        self._reset_row()
        if rows > 1:
            self.set_interior(self.interior().expand(rows, -1))

    @abstractmethod
    def _reset_row(self) -> None:
        """One grid for all channels, over `grid_range`."""

    @property
    def rows(self) -> int:
        """1, or the number of channels where each has a grid."""
        return self.grid.shape[0]

    def spread(self, channels: int) -> None:
        self.channels = channels
        if self.per_channel and self.rows == 1:
            self.set_interior(self.interior().expand(channels, -1))

    def at_zero(self, like: Tensor) -> Tensor:
        return self(like.new_zeros(self.rows))

    @lasting
    def adapt(self, x: Tensor, uniform: float = 1.0, margin: float = 0.01) -> None:
        """Lay the grid over samples.

        Args:
            x: samples, (N, rows).
            uniform: 1 for equal intervals over the samples' range, 0 for intervals with equally many distinct samples,
                in between their mean, so weighted. Constant samples (to `MIN_SPAN`) keep the width that the grid had.
            margin: what is added to the range on both sides, as a part of it.
        """
        old = self.interior().to(x)
        n = old.shape[1]
        steps = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device)
        low, high = x.amin(0), x.amax(0)
        width = old[:, -1] - old[:, 0]
        span = torch.where(high - low > MIN_SPAN * width, high - low, width)
        middle = (high + low) / 2
        low, high = middle - span * (0.5 + margin), middle + span * (0.5 + margin)
        points = low[:, None] + (high - low)[:, None] * steps  # (rows, n)
        if uniform < 1:
            # among distinct values: most pixels of many images are the same background
            distinct = (column.unique() for column in x.unbind(1))
            quantiles = torch.stack([torch.quantile(values[::1 + len(values) // MAX_DISTINCT], steps)
                                     for values in distinct])
            points = uniform * points + (1 - uniform) * quantiles
            least = MIN_INTERVAL * span[:, None] / (n - 1)
            widths = points.diff(dim=1).clamp(min=least)
            widths = widths * ((high - low) / widths.sum(1))[:, None]
            # cumsum on a GPU ends deterministic runs of older versions of PyTorch
            ends = torch.stack([*itertools.accumulate(widths.unbind(1))], 1)
            points = torch.cat([low[:, None], low[:, None] + ends], 1)
        self.set_interior(points)

    @lasting
    def grow(self, x: Tensor) -> None:
        """Add intervals of the present width at both ends until the samples, (N, rows), lie inside.

        All channels get as many as the widest needs. The old functions are among the new ones.
        """
        points, (below, above) = self.interior(), self.growth(x)
        step = (points[:, -1] - points[:, 0]) / (points.shape[1] - 1)
        steps = torch.arange(1, max(below, above) + 1, dtype=points.dtype, device=points.device) * step[:, None]
        self.grid_size += below + above
        self.set_interior(torch.cat([points[:, :1] - steps[:, :below].flip(1), points, points[:, -1:]
                                     + steps[:, :above]], 1))

    def growth(self, x: Tensor) -> tuple[int, int]:
        """How many intervals are missing below and above, so that samples, (N, rows), lie inside."""
        points = self.interior()
        step = (points[:, -1] - points[:, 0]) / (points.shape[1] - 1)
        below, above = (int(side.ceil().max().clamp(min=0)) for side in (
            (points[:, 0] - x.amin(0)) / step, (x.amax(0) - points[:, -1]) / step))
        return below, above

    @lasting
    def refine(self, grid_size: int) -> None:
        """A grid of another size over the same range; for a multiple of ``grid_size`` it keeps the old points."""
        old = self.interior()
        n = grid_size + old.shape[1] - self.grid_size
        position = torch.linspace(0, old.shape[1] - 1, n, dtype=torch.float64, device=old.device)
        left = position.floor().clamp(max=old.shape[1] - 2).long()
        points = torch.lerp(old[:, left].double(), old[:, left + 1].double(), position - left)
        self.grid_size = grid_size
        self.set_interior(points.to(old.dtype))

    def can_become(self, shape: Sequence[int]) -> bool:
        """Whether a grid of a checkpoint can be this one's: of any size, one for all channels or one for each."""
        return len(shape) == 2 and shape[0] in (1, self.rows, self.channels)

    @lasting
    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """A checkpoint's grid may be of another size, or one for each channel."""
        stored = state_dict.get(f'{prefix}grid')
        kept = self.__dict__.pop('keeps_size', False)
        if stored is not None and stored.shape != self.grid.shape and self.can_become(stored.shape) and not kept:
            self.grid_size += stored.shape[1] - self.grid.shape[1]
            for name, value in (*self.named_parameters(), *self.named_buffers()):
                if f'{prefix}{name}' in state_dict:
                    renew(value, value.new_empty(state_dict[f'{prefix}{name}'].shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        shown = f'grid_size={self.grid_size}'
        if has_numbers(self.grid):
            low, *_, high = self.interior()[0].tolist()
            shown += f', grid_range=({low:g}, {high:g})'
        return shown + (f', rows={self.rows}' if self.rows > 1 else '')

    @staticmethod
    def _align(x: Tensor, dim: int, *rows: Tensor) -> tuple[int, Tensor, list[Tensor]]:
        """The functions' axis, counted from the end; ``x`` with it; and (rows, n) tensors, to broadcast against ``x``.

        With dim=1, (B, C, H, W) becomes (B, C, 1, H, W), and (C, n) becomes (C, n, 1, 1).
        """
        behind = (x.dim() - 1 - dim) % x.dim()
        return -1 - behind, x.unsqueeze(-1 - behind), [row.reshape(*row.shape, *[1] * behind) for row in rows]
