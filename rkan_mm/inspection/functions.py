"""The one-dimensional functions of KAN layers, one by one, whatever kind of layer holds them."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from rkan_mm.models.layers import GroupedKANConv2d, KANLayer, SharedKANConv2d
from rkan_mm.models.layers.grid_update import ELEMENTWISE

Index = tuple[int, ...]
"""Of a function: the place of its weight in the ordinary layer, e.g. (out, in, row, column); (row, column) where one
kernel serves all channels."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without DDP or another of mmengine's wrappers."""
    return model.module if is_model_wrapper(model) else model


def kan_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All KAN layers of a model by name, RKAN's shared kernels included; each layer once, by its first name.

    Example:
        >>> list(kan_layers(RKANBlock(8, 16, stride=2, last=True)))
        ['kan1', 'kan2']
    """
    return {name: module for name, module in unwrap(model).named_modules()
            if isinstance(module, (KANLayer, SharedKANConv2d))}


class LayerFunctions:
    r"""The functions of a KAN layer: :math:`\phi(x, u) = w\,a(x) + s \sum_j c_j B_j(u)`, evaluated in float64.

    `u` is what the layer's normalisation makes of x. Where that is element-wise (``tanh`` or ``none``), the functions
    have one argument, x; otherwise (norm layers, statistics over a patch) they have two. Pruned functions are 0, locked
    ones what they are locked to. The values are a copy: what is done to the layer later is not seen.

    Args:
        layer: a KAN layer.
        name: what messages call it.

    Raises:
        TypeError: it is none.

    Example:
        >>> functions = LayerFunctions(SharedKANConv2d(3))
        >>> functions.shape, functions.curve((0, 0), torch.linspace(-1, 1, 5)).shape
        ((3, 3), torch.Size([5]))
    """

    def __init__(self, layer: nn.Module, name: str = '') -> None:
        if not isinstance(layer, (KANLayer, SharedKANConv2d)):
            parts = '; its parts are, e.g. [0]' if isinstance(layer, GroupedKANConv2d) else ''
            raise TypeError(f'{name or "inspection"}: expected a KAN layer (KANConv*, KANLinear, SharedKANConv2d), got '
                            f'{type(layer).__name__}{parts}')
        self.layer, self.name = layer, name
        self.shared = isinstance(layer, SharedKANConv2d)
        self.basis = copy.deepcopy(layer.basis).double()
        self.base_act = None if layer.base_act is None else copy.deepcopy(layer.base_act).double().cpu()
        self.normalization = layer.normalization
        self.elementwise = ELEMENTWISE.get(layer.normalization) if isinstance(layer.normalization, str) else None
        with torch.no_grad():
            if isinstance(layer, SharedKANConv2d):
                coefficients = layer.weight if layer.scaler is None else layer.weight * layer.scaler
                coefficients, base = coefficients.movedim(0, -1), layer.base_weight  # (F, k, k) -> (k, k, F)
            else:
                coefficients, base = layer.basis_weight, layer.weight
                if layer.scaler is not None:
                    coefficients = coefficients * layer.scaler.unsqueeze(2)
                coefficients = coefficients.movedim(2, -1)  # (out, in, F, ...) -> (out, in, ..., F)
            mask = getattr(layer, 'mask', None)
            if mask is not None:
                coefficients, base = coefficients * mask.unsqueeze(-1), None if base is None else base * mask
        self.coefficients = coefficients.detach().double().cpu()
        self.base = None if base is None else base.detach().double().cpu()
        self.basis.cpu()
        locked = getattr(layer, 'locked', None)
        self.locked = {} if locked is None else locked.functions()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the ordinary layer's weight: each place is a function."""
        return tuple(self.coefficients.shape[:-1])

    @property
    def taps(self) -> tuple[int, ...]:
        """Of the kernel; () for a linear layer."""
        return self.shape if self.shared else self.shape[2:]

    @property
    def two_arguments(self) -> bool:
        """Whether functions take x and u, see the class."""
        return self.elementwise is None

    def __len__(self) -> int:
        return math.prod(self.shape)

    def indices(self) -> list[Index]:
        return list(itertools.product(*map(range, self.shape)))

    def row(self, index: Index) -> int:
        """Input channel of a function: its row in the basis's grid and in the statistics; 0 with a shared kernel."""
        if self.shared:
            return 0
        layer = self.layer
        if getattr(layer, 'transposed', False):  # (in, out / groups, ...)
            return index[0]
        groups = getattr(layer, 'groups', 1)
        return index[0] // (self.shape[0] // groups) * self.shape[1] + index[1]

    @property
    def rows(self) -> int:
        return 1 if self.shared else self.layer.num_inputs

    def output(self, index: Index) -> int:
        """Output channel that a function adds to; 0 with a shared kernel, where it is that of the input."""
        if self.shared:
            return 0
        if not getattr(self.layer, 'transposed', False):
            return index[0]
        return index[0] // (self.shape[0] // self.layer.groups) * self.shape[1] + index[1]

    def label(self, index: Index) -> str:
        """E.g. 'tap (0, 2)' or 'in 3, out 7, tap (0, 2)'."""
        tap = index if self.shared else index[2:]
        parts = [] if self.shared else [f'in {self.row(index)}', f'out {self.output(index)}']
        return ', '.join([*parts, *([f'tap ({", ".join(map(str, tap))})'] if tap else [])])

    def planes(self, x: Tensor, u: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """What coefficients multiply, (R, N) -> (R, P, N): the base branch where there is one, then all functions.

        Args:
            x, u: arguments; ``u`` counts only where there are two.
            rows: input channels of the rows; None for all, in order.
        """
        x = x.double()
        u = u.double() if self.elementwise is None else self.elementwise(x)
        basis = self.basis
        grid_rows = getattr(basis, 'rows', 1)
        with torch.no_grad():
            if grid_rows > 1 and rows is not None:
                values = self._of_rows(u, list(rows))
            else:
                values = basis(u.T, 1).permute(1, 2, 0)  # (N, R) -> (N, R, F) -> (R, F, N)
            if self.base is None:
                return values
            base = x
            if self.two_arguments and getattr(self.layer, 'normalize_base', False):
                base = u
            base = base if self.base_act is None else self.base_act(base)
        return torch.cat([base.unsqueeze(1), values], 1)

    def _of_rows(self, u: Tensor, rows: list[int]) -> Tensor:
        """Values of chosen channels' functions: the grid is reduced to their rows for this call."""
        basis = copy.deepcopy(self.basis)
        for value in (*basis.parameters(recurse=False), *basis.buffers(recurse=False)):
            if value.dim() and value.shape[0] == self.basis.rows:
                value.data = value.data[rows]
        return basis(u.T, 1).permute(1, 2, 0)

    def weights(self, index: Index) -> Tensor:
        """What multiplies the planes for one function: (P,)."""
        own = self.coefficients[index]
        return own if self.base is None else torch.cat([self.base[index].reshape(1), own])

    def all_weights(self) -> Tensor:
        """`weights` of all functions, (*shape, P)."""
        if self.base is None:
            return self.coefficients
        return torch.cat([self.base.unsqueeze(-1), self.coefficients], -1)

    def by_place(self, weights: Tensor) -> Tensor:
        """From (*shape, P) to (rows, P, functions of the same inputs, taps)."""
        layer, taps = self.layer, math.prod(self.taps)
        if self.shared:
            return weights.reshape(1, 1, taps, -1).permute(0, 3, 1, 2)
        weights = weights.reshape(*self.shape[:2], taps, -1)
        if getattr(layer, 'transposed', False):
            return weights.permute(0, 3, 1, 2)
        weights = weights.unflatten(0, (getattr(layer, 'groups', 1), -1))  # (groups, out, in, taps, P)
        return weights.permute(0, 2, 4, 1, 3).flatten(0, 1)

    def by_index(self, values: Tensor) -> Tensor:
        """The inverse without P: from (rows, functions of the same inputs, taps) to the shape of the weight."""
        layer = self.layer
        if not self.shared and not getattr(layer, 'transposed', False):
            values = values.unflatten(0, (getattr(layer, 'groups', 1), -1)).transpose(1, 2)  # (groups, out, in, taps)
        return values.reshape(self.shape)

    def curve(self, index: Index, x: Tensor | np.ndarray, u: Tensor | np.ndarray | None = None) -> Tensor:
        """Values of one function at points (N,), in float64.

        Raises:
            ValueError: there are two arguments and ``u`` was not given.
        """
        x = torch.as_tensor(x, dtype=torch.float64)
        if self.two_arguments and u is None:
            raise ValueError(f'{self.name or type(self.layer).__name__}: its functions take x and what its '
                             f'normalization {self.normalization!r} makes of it; give both')
        u = x if u is None else torch.as_tensor(u, dtype=torch.float64)
        planes = self.planes(x[None], u[None], [self.row(index)])[0]  # (P, N)
        value = self.weights(index) @ planes
        return value + self.locked[index](x) if index in self.locked else value
