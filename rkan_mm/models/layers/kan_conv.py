"""KAN convolutions: a function for every (output channel, input channel, tap)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from rkan_mm.models.ops import (
    SPLINE_CONV_OUTPUTS,
    can_spline_conv,
    expand,
    fits_spline_conv,
    folded,
    fused_is_wanted,
    is_transformed,
    spline_conv2d,
    tf32_allowed,
)
from rkan_mm.registry import MODELS

from .basis.renew import has_numbers
from .half import as_autocast
from .kan_layer import NO_STRIDES, KANLayer
from .recompute import recompute
from .symbolic_trace import as_leaf, is_traced
from .whole_weights import laid_out
from .window import SetLater


class KANConv(SetLater, KANLayer):
    """Forward pass of the convolutions: expand each channel to the values of its functions, then one convolution."""

    channel_dim = 1

    def _check_base_act(self) -> None:
        act, shape = self.base_act, (1, self.num_inputs, *[1] * self.spatial)
        zero = None if act is None else act(next(act.parameters(), torch.empty(0, device='cpu')).new_zeros(shape))
        if zero is not None and has_numbers(zero) and zero.any():
            raise ValueError(f'{type(self).__name__}: base_act_cfg must be a function with a(0) = 0, since zeros are '
                             f'padded; {type(act).__name__} is not')

    def _fits(self, x: Tensor) -> bool:
        if x.dim() not in (self.spatial + 1, self.spatial + 2):
            return False
        return torch.jit.is_tracing() or x.shape[-1 - self.spatial] == self.num_inputs

    def forward(self, input: Tensor) -> Tensor:  # by the name that it has in PyTorch's layers
        x = input
        if is_traced(x):
            return as_leaf(self, x)
        self.check_input(x)
        if x.layout in NO_STRIDES:
            return self.of_dense(x)
        x = as_autocast(x)
        if x.dim() == self.spatial + 1:  # without a batch, as PyTorch's convolutions take it
            return self.forward(x.unsqueeze(0)).squeeze(0)
        y = self._fused(x) if x.is_cuda and fused_is_wanted() else None
        if y is not None:
            return y
        normed = self.normed(x)
        if self.memory == 'low':
            out = recompute(self._forward, x, normed, reads=self._read(x, normed))
        else:
            out = self._forward(x, normed)
        return laid_out(out, x, self.weight)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """For ``efficient_conv_bn_eval``, which scales weight and bias in the forward pass."""
        out, locked = type(self).forward(self, x), getattr(self, 'locked', None)
        whole = out if locked is None else locked.add(self, (x,), {}, out)
        scaled = self._scaled(whole, weight, bias)
        hooks_follow = 'forward' in self.__dict__  # where it is replaced, by mmcv, they will add the formulas once more
        return scaled - (whole - out) if hooks_follow else scaled

    def _fused(self, x: Tensor) -> Tensor | None:
        return None

    def planes(self, x: Tensor, normed: Tensor | None, centre: bool) -> Tensor:
        """Values that the kernel multiplies, (B, C, ...) -> (B, C * P, ...); only x is kept for the backward pass."""
        recipe = self.recipe(x)
        if recipe is None:
            return recompute(self._planes, x, normed, self.channel_dim, centre, reads=self._read()).flatten(1, 2)
        planes = expand(x.flatten(2), *recipe, centre)  # (B, C, N) -> (B, C, P, N)
        return planes.reshape(x.shape[0], planes.shape[1] * planes.shape[2], *x.shape[2:])

    def _forward(self, x: Tensor, normed: Tensor | None) -> Tensor:
        zero = self._planes_at_zero(x) if x.is_cuda else None
        padding = self.padding
        if self.padding_mode != 'zeros':
            x, normed = (t if t is None else F.pad(t, self._reversed_padding_repeated_twice, mode=self.padding_mode)
                         for t in (x, normed))
            padding = 0
        convolve, planes = getattr(F, f'conv{self.spatial}d'), self._planes_of_rows(x)
        kernel, bias = folded(self._kernel_and_bias, zero, planes is not None, constant=not self.training)
        planes = self.planes(x, normed, True) if planes is None else planes
        return convolve(planes, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def _planes_of_rows(self, x: Tensor) -> Tensor | None:
        """On a GPU in channels_last, (B, C, H, W) -> (B, P * C, H, W): all channels of a plane lie side by side."""
        if not x.is_cuda or x.dim() != 4 or self.groups > 1 or not x.stride(1) == 1 < x.stride(3):
            return None
        recipe = self.recipe(x)
        if recipe is None:
            return None
        rows = x.permute(0, 2, 3, 1)
        planes = expand(rows.reshape(-1, x.shape[1]), *recipe, True, own=True)  # (N, C) -> (N, P, C)
        return planes.reshape(*rows.shape[:3], -1).permute(0, 3, 1, 2)

    def _kernel_and_bias(self, zero: Tensor | None, by_plane: bool) -> tuple[Tensor, Tensor]:
        """(out, in * P, ...), or (out, P * in, ...) ``by_plane``, and (out,).

        With ``zero``, the planes' values at 0, in few operations.
        """
        coefficients = self.coefficients()
        kernel = self.kernel(coefficients)
        bias = self.constant(coefficients, self.basis.at_zero(coefficients)) if zero is None else self.constant(
            kernel, zero.to(kernel))
        kernel = (kernel.transpose(1, 2) if by_plane else kernel).flatten(1, 2)
        return kernel, bias if self.bias is None else bias + self.bias

    def _planes_at_zero(self, x: Tensor) -> Tensor | None:
        """(in, P), by the kernel that computes the planes of ``x``: a GPU waits for launches; None if it is not used.

        Nor for bases whose values at 0 are numbers that never change.
        """
        recipe = None if self.basis.constant_first else self.recipe(x)
        if recipe is None:
            return None
        with torch.autocast('cuda', enabled=False):
            return expand(x.new_zeros(1, x.shape[1], 1, dtype=torch.float32), *recipe, False)[0, :, :, 0]


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class KANConv2d(KANConv, nn.Conv2d):
    """A convolution with a function for each of its weights (KAN convolution, arXiv 2406.13155).

    Takes all arguments of :class:`torch.nn.Conv2d` and, by keyword, those of `KANLayer`; usable as mm's ``conv_cfg``,
    e.g. ``conv_cfg=dict(type='KANConv2d', basis=dict(type='BSpline'))``.

    Example:
        >>> KANConv2d(8, 16, 3, padding=1, basis=dict(type='Chebyshev'))(torch.rand(2, 8, 14, 14)).shape
        torch.Size([2, 16, 14, 14])
    """

    spatial = 2

    def _forward(self, x: Tensor, normed: Tensor | None) -> Tensor:
        base, functions = self.compiled_base, None
        if (base is not None and self.normalization == 'none' and not isinstance(self.padding, str)
                and not is_transformed() and self.out_channels <= SPLINE_CONV_OUTPUTS
                and (self.stride, self.dilation, self.groups, self.padding_mode) == ((1, 1), (1, 1), 1, 'zeros')):
            functions = self.basis.for_kernels()
        if (functions is None or base is None or not functions.kind.startswith('spline')
                or not can_spline_conv(x, self.basis.grid, functions, self.padding, self.bias)):
            return super()._forward(x, normed)
        kernel = self.kernel(self.coefficients())
        if not fits_spline_conv(kernel, x, functions.count + (base != 'none'), self.padding, self.bias):
            return super()._forward(x, normed)
        y = spline_conv2d(x, kernel, self.basis.grid[:, 0], functions.inverse, self.basis.order, base, self.padding)
        return y if self.bias is None else y + self.bias[:, None, None]

    def _fused(self, x: Tensor) -> Tensor | None:
        if (self.dilation, self.groups, self.padding_mode) != ((1, 1), 1, 'zeros') or isinstance(self.padding, str):
            return None
        return self.fused(x, tf32_allowed('cudnn'), self.kernel_size, self.stride, self.padding)


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class KANConv1d(KANConv, nn.Conv1d):
    """`KANConv2d` over one dimension: (B, C, L)."""

    spatial = 1


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class KANConv3d(KANConv, nn.Conv3d):
    """`KANConv2d` over three dimensions: (B, C, D, H, W)."""

    spatial = 3


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class KANConvTranspose2d(KANConv, nn.ConvTranspose2d):
    """The transposed `KANConv2d`: each input pixel adds its functions' values to the output pixels that it reaches.

    Example:
        >>> KANConvTranspose2d(8, 4, 2, stride=2)(torch.rand(1, 8, 7, 7)).shape
        torch.Size([1, 4, 14, 14])
    """

    spatial = 2
    without_constant = False  # outputs differ in how many inputs reach them

    @property
    def fan_in(self) -> int:
        shape = self.basis_weight.shape
        return max(1, shape[0] // self.groups * shape[3:].numel() // math.prod(self.stride))

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = input
        if is_traced(x):
            return as_leaf(self, x, output_size)
        self.check_input(x, output_size)
        if x.layout in NO_STRIDES:
            return self.of_dense(x, output_size)
        x = as_autocast(x)
        padding = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        return self._of_batch(x.unsqueeze(0), padding).squeeze(0) if x.dim() == 3 else self._of_batch(x, padding)

    def _of_batch(self, x: Tensor, output_padding: list[int]) -> Tensor:
        normed = self.normed(x)
        if self.memory == 'low':
            out = recompute(self._transposed, x, normed, output_padding, reads=self._read(x, normed))
        else:
            out = self._transposed(x, normed, output_padding)
        return laid_out(out, x, self.weight)

    def _transposed(self, x: Tensor, normed: Tensor | None, output_padding: list[int]) -> Tensor:
        kernel = folded(self._transposed_kernel, constant=not self.training)
        return F.conv_transpose2d(self.planes(x, normed, False), kernel, self.bias, self.stride, self.padding,
                                  output_padding, self.groups, self.dilation)

    def _transposed_kernel(self) -> Tensor:
        return self.kernel(self.coefficients()).transpose(1, 2).flatten(0, 1)  # (in, out, P, ...) -> (in * P, out, ...)
