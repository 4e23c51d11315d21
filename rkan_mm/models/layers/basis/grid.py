"""Bases on a grid: B-splines, and windows such as Gaussians around the points of the grid."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import Functions
from rkan_mm.registry import BASES

from .base import Basis

MIN_INTERVAL = 1e-3
"""Least width of an interval of an adapted grid, as a part of the mean one."""


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

    def __init__(self, grid_size: int, grid_range: tuple[float, float], per_channel: bool) -> None:
        super().__init__()
        name, (low, high) = type(self).__name__, grid_range
        if not isinstance(grid_size, int) or grid_size < self.least:
            raise ValueError(f'{name}: grid_size must be an integer of at least {self.least}, got {grid_size!r}')
        if not low < high:
            raise ValueError(f'{name}: grid_range must be (low, high) with low < high, got {grid_range!r}')
        self.grid_size, self.per_channel = grid_size, per_channel

    @abstractmethod
    def interior(self) -> Tensor:
        """The grid's points from its lower to its upper end, (rows, n)."""

    @abstractmethod
    def set_interior(self, points: Tensor) -> None:
        """Lay the grid through other points, (rows, n). Another n refines it, and coefficients must be fitted anew."""

    def refresh(self) -> None:
        """To be called after the grid was written to by others."""

    @property
    def rows(self) -> int:
        """1, or the number of channels where each has a grid."""
        return self.grid.shape[0]

    def spread(self, channels: int) -> None:
        if self.per_channel and self.rows == 1:
            self.set_interior(self.interior().expand(channels, -1))

    def at_zero(self, like: Tensor) -> Tensor:
        return self(like.new_zeros(self.rows))

    @torch.no_grad()
    def adapt(self, x: Tensor, uniform: float = 1.0, margin: float = 0.01) -> None:
        """Lay the grid over samples.

        Args:
            x: samples, (N, rows).
            uniform: 1 for equal intervals over the samples' range, 0 for intervals with equally many distinct samples,
                in between their mean, so weighted. Constant samples keep the width that the grid had.
            margin: what is added to the range on both sides, as a part of it.
        """
        old = self.interior().to(x)
        n = old.shape[1]
        steps = torch.linspace(0, 1, n, dtype=x.dtype, device=x.device)
        low, high = x.amin(0), x.amax(0)
        span = torch.where(high > low, high - low, old[:, -1] - old[:, 0])
        middle = (high + low) / 2
        low, high = middle - span * (0.5 + margin), middle + span * (0.5 + margin)
        points = low[:, None] + (high - low)[:, None] * steps  # (rows, n)
        if uniform < 1:
            # among distinct values: most pixels of many images are the same background
            quantiles = torch.stack([torch.quantile(column.unique(), steps) for column in x.unbind(1)])
            points = uniform * points + (1 - uniform) * quantiles
            least = MIN_INTERVAL * span[:, None] / (n - 1)
            widths = points.diff(dim=1).clamp(min=least)
            widths = widths * ((high - low) / widths.sum(1))[:, None]
            points = torch.cat([low[:, None], low[:, None] + widths.cumsum(1)], 1)
        self.set_interior(points)

    @torch.no_grad()
    def grow(self, x: Tensor) -> None:
        """Add intervals of the present width at both ends until the samples, (N, rows), lie inside.

        All channels get as many as the widest needs. The old functions are among the new ones.
        """
        points = self.interior()
        step = (points[:, -1] - points[:, 0]) / (points.shape[1] - 1)
        below = int(((points[:, 0] - x.amin(0)) / step).ceil().max().clamp(min=0))
        above = int(((x.amax(0) - points[:, -1]) / step).ceil().max().clamp(min=0))
        steps = torch.arange(1, max(below, above) + 1, dtype=points.dtype, device=points.device) * step[:, None]
        self.grid_size += below + above
        self.set_interior(torch.cat([points[:, :1] - steps[:, :below].flip(1), points, points[:, -1:]
                                     + steps[:, :above]], 1))

    @torch.no_grad()
    def refine(self, grid_size: int) -> None:
        """A grid of another size over the same range; for a multiple of ``grid_size`` it keeps the old points."""
        old = self.interior()
        n = grid_size + old.shape[1] - self.grid_size
        position = torch.linspace(0, old.shape[1] - 1, n, dtype=torch.float64, device=old.device)
        left = position.floor().clamp(max=old.shape[1] - 2).long()
        points = torch.lerp(old[:, left].double(), old[:, left + 1].double(), position - left)
        self.grid_size = grid_size
        self.set_interior(points.to(old.dtype))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        """A checkpoint's grid may be of another size, or one for each channel."""
        stored = state_dict.get(f'{prefix}grid')
        if stored is not None and stored.dim() == 2 and stored.shape != self.grid.shape:
            self.grid_size += stored.shape[1] - self.grid.shape[1]
            for name, value in (*self.named_parameters(), *self.named_buffers()):
                if f'{prefix}{name}' in state_dict:
                    value.data = value.new_empty(state_dict[f'{prefix}{name}'].shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        low, *_, high = self.interior()[0].tolist()
        shown = f'grid_size={self.grid_size}, grid_range=({low:g}, {high:g})'
        return shown + (f', rows={self.rows}' if self.rows > 1 else '')

    @staticmethod
    def _align(x: Tensor, dim: int, *rows: Tensor) -> tuple[int, Tensor, list[Tensor]]:
        """The functions' axis, counted from the end; ``x`` with it; and (rows, n) tensors, to broadcast against ``x``.

        With dim=1, (B, C, H, W) becomes (B, C, 1, H, W), and (C, n) becomes (C, n, 1, 1).
        """
        behind = (x.dim() - 1 - dim) % x.dim()
        return -1 - behind, x.unsqueeze(-1 - behind), [row.reshape(*row.shape, *[1] * behind) for row in rows]


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
        self.uniform = True  # equal intervals, for which there is a closed form
        low, high = grid_range
        points = torch.arange(-order, grid_size + order + 1, dtype=torch.float64) * ((high - low) / grid_size) + low
        self.register_buffer('grid', points.to(torch.get_default_dtype())[None])

    @property
    def num_functions(self) -> int:
        return self.grid_size + self.order

    def interior(self) -> Tensor:
        return self.grid[:, self.order:-self.order]

    def set_interior(self, points: Tensor) -> None:
        points = points.to(self.grid)
        step = (points[:, -1:] - points[:, :1]) / (points.shape[1] - 1)
        beyond = step * torch.arange(1, self.order + 1, dtype=points.dtype, device=points.device)
        self.grid.data = torch.cat([points[:, :1] - beyond.flip(1), points, points[:, -1:] + beyond], 1)
        self.refresh()

    def refresh(self) -> None:
        widths = self.grid.diff(dim=1)
        self.uniform = bool((widths.amax(1) - widths.amin(1) <= 1e-4 * widths.mean(1)).all())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not self.grid.is_meta:
            self.refresh()

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        # in float64 the knots count as they are stored, to the last digit
        if self.uniform and self.order <= 5 and x.dtype != torch.float64:
            return self._cardinal(x, dim)
        return self._cox_de_boor(x, dim)

    def functions(self) -> Functions | None:
        if not self.uniform or self.order > 3:
            return None
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
        middles, inverse = self._middles()
        _, x, (middles, inverse) = self._align(x, dim, middles, inverse)
        distance = (x - middles).abs() * inverse
        total = 0
        for j in range(k // 2 + 1):
            factor = (-1)**j * math.comb(k + 1, j) / math.factorial(k)
            total = total + factor * ((k + 1) / 2 - j - distance).relu()**k
        return total

    def _cox_de_boor(self, x: Tensor, dim: int) -> Tensor:
        axis, x, (t,) = self._align(x, dim, self.grid.to(x))

        def knots(start: int, stop: int) -> Tensor:
            return t.narrow(axis, start, t.size(axis) + stop - start)

        values = ((x >= knots(0, -1)) & (x < knots(1, 0))).to(x)
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
        # the coefficients of least norm whose splines take random values at the points of the grid
        low, *_, high = self.interior()[0].tolist()
        basis = BSpline(self.grid_size, self.order, (low, high)).double()
        points = torch.linspace(low, high, self.grid_size + 1, dtype=torch.float64)
        with torch.no_grad():
            target = weight.movedim(2, -1)  # (out, in, F, ...) -> (out, in, ..., F)
            noise = torch.rand(*target.shape[:-1], self.grid_size + 1, dtype=torch.float64, device=weight.device) - 0.5
            solve = torch.linalg.pinv(basis(points)).T.to(weight.device)
            target.copy_(noise * (self.noise_scale / self.grid_size) @ solve)
        return None

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, order={self.order}'


class Window(GridBasis):
    """One function of :math:`z = (x - g_i) / h`, around each point :math:`g_i` of a grid. A subclass supplies it.

    Args:
        grid_size: number of points, at least 2.
        grid_range: first and last point before the grid is adapted.
        width: `h`; None is the distance of neighbours.
        per_channel: whether every input channel gets a grid and a width of its own.
        trainable_grid, trainable_width: whether the points and 1 / h are parameters.
    """

    least = 2
    second: ClassVar[dict] = dict(grid_size=2)
    kind: ClassVar[str | None] = None
    """Name of the window in the compiled kernel."""

    def __init__(self,
                 grid_size: int = 8,
                 grid_range: tuple[float, float] = (-2.0, 2.0),
                 width: float | None = None,
                 per_channel: bool = False,
                 trainable_grid: bool = False,
                 trainable_width: bool = False) -> None:
        super().__init__(grid_size, grid_range, per_channel)
        spacing = (grid_range[1] - grid_range[0]) / (grid_size - 1)
        if width is not None and not width > 0:
            raise ValueError(f'{type(self).__name__}: width must be above 0, got {width!r}')
        for name, value, trainable in (('grid', torch.linspace(*grid_range, grid_size)[None], trainable_grid),
                                       ('inv_width', torch.tensor([[1 / (width or spacing)]]), trainable_width)):
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    @abstractmethod
    def window(self, z: Tensor) -> Tensor:
        """The function, element-wise; it vanishes for |z| > 30."""

    @property
    def num_functions(self) -> int:
        return self.grid_size

    def functions(self) -> Functions | None:
        if self.kind is None or self.grid.requires_grad or self.inv_width.requires_grad:
            return None
        return Functions(self.kind, self.grid_size, self.grid.detach(), self.inv_width.detach().squeeze(1))

    def interior(self) -> Tensor:
        return self.grid.detach()

    def set_interior(self, points: Tensor) -> None:
        """The width stays in proportion to the mean distance of neighbours."""
        spacing = [(grid[:, -1:] - grid[:, :1]) / (grid.shape[1] - 1) for grid in (self.grid.detach(), points)]
        self.inv_width.data = (self.inv_width * spacing[0] / spacing[1]).to(self.grid)
        self.grid.data = points.to(self.grid, copy=True)

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        _, x, (grid, inv_width) = self._align(x, dim, self.grid.to(x), self.inv_width.to(x))
        return self.window(((x - grid) * inv_width).clamp(-30, 30))


@BASES.register_module()
class GaussianRBF(Window):
    """Gaussians exp(-z^2), the functions of FastKAN (arXiv 2405.06721)."""

    kind = 'gaussian'

    def window(self, z: Tensor) -> Tensor:
        return torch.exp(-z * z)


@BASES.register_module()
class RSWAF(Window):
    """Reflectional switch functions 1 - tanh(z)^2, those of FasterKAN."""

    kind = 'switch'

    def window(self, z: Tensor) -> Tensor:
        return 1 - torch.tanh(z)**2


@BASES.register_module()
class ReLUKAN(Window):
    r"""Bells :math:`\max(0, 1 - z^2)^2`, the functions of ReLU-KAN (arXiv 2406.02075): `G + k` on `G` intervals.

    Args:
        grid_size: `G`, at least 1.
        order: `k`, by which the bells overlap; each is ``(order + 1)`` intervals wide.
        grid_range, per_channel, trainable_grid, trainable_width: as in `Window`.
    """

    def __init__(self, grid_size: int = 5, order: int = 3, grid_range: tuple[float, float] = (-1.0, 1.0),
                 **kwargs) -> None:
        low, high = grid_range
        step = (high - low) / grid_size
        outside = step * (order - 1) / 2
        super().__init__(grid_size + order, (low - outside, high + outside), width=step * (order + 1) / 2, **kwargs)

    def window(self, z: Tensor) -> Tensor:
        return (1 - z * z).relu()**2


WAVELETS = dict(
    mexican_hat=lambda z: 2 / (math.sqrt(3) * math.pi**0.25) * (1 - z * z) * torch.exp(-z * z / 2),
    morlet=lambda z: torch.cos(5 * z) * torch.exp(-z * z / 2),
    dog=lambda z: -z * torch.exp(-z * z / 2),
)


@BASES.register_module()
class Wavelet(Window):
    """Translates of one wavelet, as in Wav-KAN (arXiv 2405.12832).

    Args:
        wavelet: ``'mexican_hat'``, ``'morlet'`` or ``'dog'`` (derivative of a Gaussian).
        kwargs: as in `Window`.

    Raises:
        ValueError: no such wavelet.
    """

    def __init__(self, wavelet: str = 'mexican_hat', **kwargs) -> None:
        if wavelet not in WAVELETS:
            raise ValueError(f'Wavelet: no wavelet {wavelet!r}; there are {", ".join(WAVELETS)}')
        super().__init__(**kwargs)
        self.wavelet = wavelet

    def window(self, z: Tensor) -> Tensor:
        return WAVELETS[self.wavelet](z)

    def extra_repr(self) -> str:
        return f'wavelet={self.wavelet!r}, {super().extra_repr()}'
