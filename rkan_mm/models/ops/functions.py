"""What the kernels of this package need to know of the functions of a basis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = dict(polynomial=0, spline1=1, spline2=2, spline3=3, gaussian=4, switch=5)
BASES = dict(none=0, identity=1, silu=2)


class Functions(NamedTuple):
    """So many functions of a kind, around the points of one grid or of a grid for each channel."""

    kind: str
    count: int  # type: ignore[assignment]  # hides tuple.count
    points: Tensor
    """(grids, F) middles of functions; of polynomials (3, F) coefficients of their recurrence."""
    inverse: Tensor | None = None
    """(grids,) inverse widths; None for polynomials, and where the points are all knots of uniform splines."""
    steps: tuple[float, ...] = ()
    """Of polynomials, a_n, then b_n, then c_n of P_{n+1} = (a u + b) P_n - c P_{n-1}, for kernels compiled for them."""

    @property
    def knots(self) -> int:
        """How many more points there are than functions: with knots the order of the splines and one, else none."""
        return int(self.kind[-1]) + 1 if self.kind.startswith('spline') and self.inverse is None else 0

    @property
    def grids(self) -> int:
        return 1 if self.kind == 'polynomial' else self.points.shape[0]

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What kernels read that are compiled for the recurrence of polynomials."""
        return () if self.kind == 'polynomial' else tuple(t for t in (self.points, self.inverse) if t is not None)

    def with_arrays(self, arrays: Sequence[Tensor]) -> Functions:
        """The same with other :attr:`arrays`, of as many tensors."""
        return self._replace(**dict(zip(('points', 'inverse'), arrays, strict=False)))

    def fit(self, channels: int) -> bool:
        """Whether the arrays have the shapes that they must have for an input of so many channels."""
        rows = 3 if self.kind == 'polynomial' else self.grids
        return (self.grids in (1, channels) and self.points.shape == (rows, self.count + self.knots)
                and (self.inverse is None or self.inverse.shape == (self.grids,)))

    def middles(self) -> tuple[Tensor, Tensor]:
        """The middles and inverse widths of functions on a grid, (grids, F) and (grids,)."""
        if self.inverse is not None:
            return self.points, self.inverse
        step = (self.points[:, -1] - self.points[:, 0]) / (self.points.shape[1] - 1)
        return self.points[:, :self.count] + (step * (self.knots / 2))[:, None], 1 / step


def example(kind: str, count: int, channels: int | None, dtypes: tuple[torch.dtype, ...], steps: tuple[float, ...],
            device: str) -> Functions:
    """Functions of this kind, for a check of the kernels: on a grid for each channel, or (None) for all.

    ``dtypes`` are those of :attr:`Functions.arrays`: of one array alone, it holds the knots of splines.
    """
    if kind == 'polynomial':
        return Functions(kind, count, torch.tensor(steps).reshape(3, count), steps=steps)
    generator = torch.Generator().manual_seed(0)
    shift = 0.2 * torch.rand(channels or 1, 1, generator=generator)
    knots = 0 if len(dtypes) > 1 else int(kind[-1]) + 1
    points = (torch.linspace(-2, 2, count + knots) * (1 + shift) + shift).to(device, dtypes[0])
    return Functions(kind, count, points, None if knots else (1 + shift[:, 0]).to(device, dtypes[1]))
