"""B-splines on a grid."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import ClassVar

import torch
from torch import Tensor

from rkan_mm.models.ops import Functions, as_type_of, fingerprint, folded, is_recorded, static_shape
from rkan_mm.registry import BASES

from ..half import HALF
from .grid import GridBasis, lasting
from .renew import has_numbers, placed, renew


@BASES.register_module()
class BSpline(GridBasis):
    r"""B-splines of order `k` on `G` intervals, the functions of KAN (arXiv 2404.19756): `G + k` functions.

    The grid goes on for `k` intervals beyond both ends, so the functions sum to 1 between them and fade to 0 outside.

    Args:
        grid_size: `G`, at least 1.
        order: `k`, at least 1; 3 are cubic splines.
        grid_range: the interval of the grid before it is adapted.
        per_channel: whether every input channel gets a grid of its own.
        noise_scale: coefficients begin as the fit of uniform noise of this size over `G`, as in efficient-kan; None
            draws them normally, of a size that keeps the variance.

    Raises:
        ValueError: as in `GridBasis`; ``order`` is below 1.
    """

    second: ClassVar[dict] = dict(order=2, grid_size=2)
    _uniform = True
    _seen: Hashable = None
    """The `fingerprint` of the grid for which that was found."""

    def __init__(self,
                 grid_size: int = 5,
                 order: int = 3,
                 grid_range: tuple[float, float] = (-1.0, 1.0),
                 per_channel: bool = True,
                 noise_scale: float | None = 0.1) -> None:
        super().__init__(grid_size, grid_range, per_channel)
        if not isinstance(order, int) or order < 1:
            raise ValueError(f'BSpline: order must be an integer of at least 1, got {order!r}')
        self.order, self.noise_scale = order, noise_scale
        self.register_buffer('grid', torch.empty(1, grid_size + 2 * order + 1))
        self.reset_parameters()

    def _reset_row(self) -> None:
        (low, high), n, k = self.grid_range, self.grid_size, self.order
        points = torch.arange(-k, n + k + 1, dtype=torch.float64, device='cpu') * ((high - low) / n) + low
        renew(self.grid, points[None])
        self.refresh()

    @property
    def num_functions(self) -> int:
        return static_shape(self.grid)[1] - self.order - 1

    def interior(self) -> Tensor:
        return self.grid[:, self.order:-self.order]

    @lasting
    def set_interior(self, points: Tensor) -> None:
        points = points.to(self.grid)
        step = (points[:, -1:] - points[:, :1]) / (points.shape[1] - 1)
        beyond = step * torch.arange(1, self.order + 1, dtype=points.dtype, device=points.device)
        renew(self.grid, torch.cat([points[:, :1] - beyond.flip(1), points, points[:, -1:] + beyond], 1))
        self.refresh()

    @property
    def uniform(self) -> bool:
        """Whether all intervals are equal, for which there is a closed form.

        The grid is looked at again after somebody has written to it; what is set here holds until then. One cannot look
        under torch.func, where a grid that is new is taken for one of any intervals: it may be those of many layers.
        """
        functional = torch._C._are_functorch_transforms_active() and not is_recorded()
        if functional and (torch._C._functorch.is_functorch_wrapped_tensor(self.grid) or not self.grid.is_contiguous()):
            return False
        found = fingerprint(self.grid)
        if found is not None and found != self._seen:
            if functional:
                return False
            self.refresh()
        return self._uniform

    @uniform.setter
    def uniform(self, value: bool) -> None:
        self._uniform, self._seen = value, fingerprint(self.grid)

    @torch.no_grad()
    def refresh(self) -> None:
        if not has_numbers(self.grid):  # without values; as it was
            return
        grid = self.grid.detach()
        widths, (middles, inverse) = grid.diff(dim=1), self._middles()
        rounding = 2 * torch.finfo(grid.dtype).eps * grid.abs().amax(1) if grid.dtype in HALF else 0.0
        even = widths.amax(1) - widths.amin(1) <= 1e-4 * widths.mean(1) + rounding
        numbers = inverse.isfinite().all() and middles.isfinite().all()
        self.uniform = bool(numbers and even.all() and (inverse > 0).all())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.refresh()

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        # in float64 the knots count as they are stored, to the last digit
        if self.uniform and self.order <= 5 and x.dtype != torch.float64:
            return self._cardinal(x, dim)
        return self._cox_de_boor(x, dim)

    def functions(self) -> Functions | None:
        if self.grid.requires_grad or self.order > 3 or not self.uniform:
            return None
        if self.grid.is_cuda:  # whose kernels take the knots as they are
            return Functions(f'spline{self.order}', self.num_functions, self.grid.detach())
        middles, inverse = self._middles()
        return Functions(f'spline{self.order}', self.num_functions, middles, inverse.squeeze(1))

    def _middles(self) -> tuple[Tensor, Tensor]:
        """Of uniform splines the middles, (rows, F), and the inverse width of an interval, (rows, 1)."""
        n, k = self.num_functions, self.order
        step = (self.grid[:, -1:] - self.grid[:, :1]) / (n + k)
        return self.grid[:, :n] + step * ((k + 1) / 2), 1 / step

    def _cardinal(self, x: Tensor, dim: int) -> Tensor:
        """All functions are one, moved: a sum of few truncated powers of the distance from its middle."""
        k = self.order
        middles, inverse = folded(self._middles, constant=not self.training)
        _, x, (middles, inverse) = self._align(x, dim, middles, inverse)
        distance = (x - middles).abs() * inverse
        total = 0
        for j in range(k // 2 + 1):
            factor = (-1)**j * math.comb(k + 1, j) / math.factorial(k)
            total = total + factor * ((k + 1) / 2 - j - distance).relu()**k
        return total

    def _cox_de_boor(self, x: Tensor, dim: int) -> Tensor:
        axis, x, (t,) = self._align(x, dim, as_type_of(self.grid, x))

        def knots(start: int, stop: int) -> Tensor:
            return t.narrow(axis, start, t.size(axis) + stop - start)

        values = as_type_of((x >= knots(0, -1)) & (x < knots(1, 0)), x)
        for p in range(1, self.order + 1):
            width = knots(p, 0) - knots(0, -p)
            slope = torch.where(width > 0, 1 / width, 0)
            n = values.size(axis) - 1
            rising = (x - knots(0, -p - 1)) * slope.narrow(axis, 0, n) * values.narrow(axis, 0, n)
            falling = (knots(p + 1, 0) - x) * slope.narrow(axis, 1, n) * values.narrow(axis, 1, n)
            values = rising + falling
        return values

    def init_weight(self, weight: Tensor, fan_in: int) -> None:
        if self.noise_scale is None:
            return super().init_weight(weight, fan_in)
        if not has_numbers(weight):
            return None
        # the coefficients of least norm whose splines take random values at the points of the grid
        low, high = self.grid_range
        with torch.no_grad(), torch.device('cpu'):  # whatever the default device is
            basis = BSpline(self.grid_size, self.order, (low, high)).double()
            points = torch.linspace(low, high, self.grid_size + 1, dtype=torch.float64)
            shape = *weight.shape[:2], *weight.shape[3:], self.grid_size + 1
            device = 'cpu' if weight.device.type == 'mps' else weight.device  # Apple's GPUs have no double precision
            noise = torch.rand(shape, dtype=torch.float64, device=device) - 0.5
            solve = torch.linalg.pinv(basis(points)).T.to(device)
            drawn = noise * (self.noise_scale / self.grid_size) @ solve  # (out, in, ..., F)
            weight.copy_(placed(drawn.movedim(-1, 2), weight))
        return None

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, order={self.order}'
