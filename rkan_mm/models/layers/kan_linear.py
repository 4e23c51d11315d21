"""The KAN linear layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from rkan_mm.models.ops import expand, folded, fused_is_wanted, tf32_allowed
from rkan_mm.registry import MODELS

from .half import as_autocast
from .kan_layer import NO_STRIDES, KANLayer
from .recompute import recompute
from .symbolic_trace import as_leaf, is_traced


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class KANLinear(KANLayer, nn.Linear):
    """A linear layer with a function for each of its weights (KAN, arXiv 2404.19756): (..., in) -> (..., out).

    Takes all arguments of :class:`torch.nn.Linear` and, by keyword, those of `KANLayer`. As ``type='KANLinear'`` it
    is a linear layer for mmcv's ``build_linear_layer``, e.g. ``cls_predictor_cfg`` of mmdet's box heads.

    Example:
        >>> KANLinear(16, 4, basis=dict(type='GaussianRBF', grid_size=8))(torch.rand(2, 5, 16)).shape
        torch.Size([2, 5, 4])
    """

    channel_dim = -1

    def _fits(self, x: Tensor) -> bool:
        return x.dim() > 0 and (torch.jit.is_tracing() or x.shape[-1] == self.in_features)

    def forward(self, input: Tensor) -> Tensor:  # by the name that it has in PyTorch's layers
        x = input
        if is_traced(x):
            return as_leaf(self, x)
        if isinstance(x, Tensor) and x.is_nested and has_rows(x):
            return of_rows(self.forward, x)
        self.check_input(x)
        if x.layout in NO_STRIDES:
            return self.of_dense(x)
        x = as_autocast(x)
        if x.is_cuda and fused_is_wanted():
            rows = x.reshape(-1, self.in_features)[..., None, None]  # pictures of one pixel
            y = self.fused(rows, tf32_allowed('matmul'))
            if y is not None:
                return y.reshape(*x.shape[:-1], self.out_features)
        normed = self.normed(x)
        if self.memory == 'low':
            return recompute(self._forward, x, normed, reads=self._read(x, normed))
        return self._forward(x, normed)

    def _forward(self, x: Tensor, normed: Tensor | None) -> Tensor:
        kernel, bias = folded(self._kernel_and_bias, constant=not self.training)
        return F.linear(self.planes(x, normed), kernel, bias)

    def _kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """(out, P * in) and (out,)."""
        coefficients = self.coefficients()
        bias = self.bias
        if self.basis.constant_first:
            constant = coefficients[:, :, 0].sum(1)
            bias = constant if bias is None else bias + constant
        return self.kernel(coefficients).transpose(1, 2).flatten(1), bias  # (out, in, P) -> (out, P * in)

    def planes(self, x: Tensor, normed: Tensor | None) -> Tensor:
        """Values that the kernel multiplies, (..., in) -> (..., P * in); only x is kept for the backward pass."""
        recipe = self.recipe(x)
        if recipe is None:
            planes = recompute(self._planes, x, normed, self.channel_dim, False, reads=self._read())
            planes = planes.transpose(-1, -2)
        else:
            planes = expand(x.reshape(-1, self.in_features), *recipe, False, own=True)  # (B, in) -> (B, P, in)
        return planes.reshape(*x.shape[:-1], planes.shape[-2] * self.in_features)


def has_rows(x: Tensor) -> bool:
    """Whether the tensors in a nested one differ in their first dimension alone, so that rows lie side by side."""
    return x.layout is torch.strided or (x.is_contiguous() and getattr(x, '_ragged_idx', 0) == 1)


def of_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of rows, (N, ..., in) -> (N, ..., out), of those of all tensors in a nested one at once."""
    if x.layout is not torch.strided:
        return torch.nested.nested_tensor_from_jagged(function(x.values()), x.offsets())
    parts = x.unbind()
    rows = [part.reshape(-1, part.shape[-1]) for part in parts]
    y = function(torch.cat(rows)).split([len(each) for each in rows])
    return torch.nested.as_nested_tensor([out.reshape(*part.shape[:-1], out.shape[-1])
                                          for out, part in zip(y, parts, strict=True)])
