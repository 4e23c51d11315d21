"""Windows around the points of a grid, such as Gaussians."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import Functions, as_type_of, static_shape
from rkan_mm.registry import BASES

from .grid import GridBasis, lasting
from .renew import renew


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
    more = 0
    """Points beyond `grid_size`, of which `ReLUKAN` has some."""
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
        size = grid_size + self.more
        spacing = (grid_range[1] - grid_range[0]) / (size - 1)
        if width is not None and not width > 0:
            raise ValueError(f'{type(self).__name__}: width must be above 0, got {width!r}')
        self.overlap = (width or spacing) / spacing
        for name, length, trainable in (('grid', size, trainable_grid), ('inv_width', 1, trainable_width)):
            if trainable:
                self.register_parameter(name, nn.Parameter(torch.empty(1, length)))
            else:
                self.register_buffer(name, torch.empty(1, length))
        self.reset_parameters()

    def _reset_row(self) -> None:
        (low, high), device, size = self.grid_range, self.grid.device, self.grid_size + self.more
        spacing = (high - low) / (size - 1)
        renew(self.grid, torch.linspace(low, high, size, device=device)[None])
        renew(self.inv_width, torch.tensor([[1 / (self.overlap * spacing)]], device=device))

    @abstractmethod
    def window(self, z: Tensor) -> Tensor:
        """The function, element-wise; it vanishes for |z| > 30."""

    @property
    def num_functions(self) -> int:
        return static_shape(self.grid)[1]

    def functions(self) -> Functions | None:
        if self.kind is None or self.grid.requires_grad or self.inv_width.requires_grad:
            return None
        return Functions(self.kind, self.num_functions, self.grid.detach(), self.inv_width.detach().squeeze(1))

    def interior(self) -> Tensor:
        return self.grid.detach()

    @lasting
    def set_interior(self, points: Tensor) -> None:
        """The width stays in proportion to the mean distance of neighbours."""
        spacing = [(grid[:, -1:] - grid[:, :1]) / (grid.shape[1] - 1) for grid in (self.grid.detach(), points)]
        renew(self.inv_width, (self.inv_width * spacing[0] / spacing[1]).to(self.grid))
        renew(self.grid, points.to(self.grid, copy=True))

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        _, x, (grid, inv_width) = self._align(x, dim, as_type_of(self.grid, x), as_type_of(self.inv_width, x))
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
        self.more, self.least = order, max(1, 2 - order)
        super().__init__(grid_size, (low - outside, high + outside), width=step * (order + 1) / 2, **kwargs)

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
