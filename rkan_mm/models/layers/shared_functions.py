"""Grids, penalties, importance and pruning of the functions that all channels share: one for each tap of a kernel."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rkan_mm.models.ops import as_type_of

from .basis.grid import lasting
from .grid_fit import CHUNK, some
from .grid_update import ELEMENTWISE, GridUpdate
from .half import as_autocast, in_full
from .sparsity import Sparsity
from .whole_weights import WholeWeights

Weight = TypeVar('Weight', bound=Tensor | None)


class SharedFunctions(GridUpdate, Sparsity, WholeWeights):
    """Mixin of `SharedKANConv2d`; its mask and the importance of its functions are of shape (kh, kw)."""

    coefficients_name: ClassVar[str] = 'weight'
    spatial: ClassVar[int] = 2

    def masked(self, weight: Weight) -> Weight:
        """Of (..., kh, kw) what is not pruned."""
        if weight is not None:
            weight = as_autocast(weight)
        mask = self.present_mask
        return weight if mask is None or weight is None else weight * as_type_of(mask, weight)

    def scaled(self) -> Tensor:
        """`s c` of the functions that are not pruned, (F, kh, kw)."""
        return self.masked(self.weight if self.scaler is None else self.weight * self.scaler)

    def coefficients(self) -> Tensor:
        """`s c` as in a layer of one output and one input, (1, 1, F, kh, kw)."""
        return self.scaled()[None, None]

    def by_channel(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)[None]  # (F, kh, kw) -> (1, F, taps)

    def from_channel(self, weight: Tensor) -> Tensor:
        return weight[0].unflatten(1, self.kernel_size)

    def _samples(self, x: Tensor) -> Tensor:
        if self.normalization not in ELEMENTWISE:
            return self._seen(x)[0].reshape(-1, 1)
        return ELEMENTWISE[self.normalization](x).reshape(-1, 1)

    @property
    def _pads(self) -> bool:
        return any(self.padding) and self.normalization in ELEMENTWISE

    def check_samples(self, x: Tensor) -> None:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.dim() in (3, 4)):
            F.conv2d(x, self.weight.new_zeros(1, 1, *self.kernel_size))

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the functions see of the patches of some channels, and these patches, (n, taps, L)."""
        planes = self._batched(x).flatten(0, 1).unsqueeze(1)
        each = planes[0].numel() * self.weight.numel() if len(planes) else 1
        planes = some(planes, max(1, CHUNK // max(1, each))).to(self.weight)
        patches = F.unfold(planes, self.kernel_size, self.dilation, self.padding, self.stride)
        u = self.normalized(patches)
        return in_full(u), in_full(patches)

    @lasting
    def importance(self, x: Tensor | None = None) -> Tensor:
        coefficients, base = in_full(self.scaled()), self.masked(self.base_weight)
        if x is None:
            return coefficients.abs().sum(0) + (0 if base is None else base.abs())
        self.check_samples(x)
        u, patches = self._seen(x)
        finite = patches.isfinite().all(1)  # (n, L)
        self._finite_ones(patches, finite.any(1))
        squares = u.new_zeros((), dtype=torch.float64)
        rows = max(1, CHUNK // (u[0].numel() * len(coefficients)))
        for seen, patch, good in zip(u.split(rows), patches.split(rows), finite.split(rows), strict=True):
            value = torch.einsum('npfl,fp->npl', self.basis(seen, 1), coefficients.flatten(1).to(patch))
            if base is not None:
                patch = seen if self.normalize_base else patch
                patch = patch if self.base_act is None else self.base_act(patch.clone())
                value = value + patch * base.flatten().to(patch)[:, None]
            squares = squares + value.masked_fill(~good[:, None], 0.0).double().square().sum((0, 2))
        return (squares / finite.sum()).sqrt().reshape(self.kernel_size).to(coefficients.dtype)
