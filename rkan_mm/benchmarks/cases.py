"""KAN layers to be measured: each beside the ordinary layer of its shape and beside its naive form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.ops import fused
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window


class Unfolded(nn.Module):
    """A shared KAN convolution as its definition has it: patches, functions, sum (what the reference computes)."""

    def __init__(self, conv: SharedKANConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        assert conv.base_weight is not None
        window = conv.kernel_size, conv.dilation, conv.padding, conv.stride
        patches = F.unfold(x.flatten(0, 1).unsqueeze(1), *window)  # (B * C, taps, L)
        out = torch.einsum('npfl,fp->nl', conv.basis(patches.tanh(), 1), (conv.weight * conv.scaler).flatten(1))
        out = out + torch.einsum('npl,p->nl', patches, conv.base_weight.flatten())
        return out.reshape(*x.shape[:2], *Window(conv.stride, conv.padding, conv.dilation).output_size(x, conv.weight))


class Autograd(nn.Module):
    """A KAN layer in plain PyTorch, of which autograd keeps what it likes; splines by the recursion of their knots."""

    def __init__(self, layer: KANConv2d | KANLinear) -> None:
        super().__init__()
        self.layer = layer
        if hasattr(layer.basis, 'uniform'):
            layer.basis.uniform = False

    def forward(self, x: Tensor) -> Tensor:
        layer, coefficients = self.layer, self.layer.coefficients()
        kernel = layer.kernel(coefficients)
        if isinstance(layer, KANLinear):
            return F.linear(layer._planes(x, None, -1, False).flatten(-2), kernel.flatten(1), layer.bias)
        bias = layer.bias + layer.constant(coefficients, layer.basis.at_zero(coefficients))
        return F.conv2d(layer._planes(x, None, 1, True).flatten(1, 2), kernel.flatten(1, 2), bias, layer.stride,
                        layer.padding, layer.dilation, layer.groups)


@dataclass
class Case:
    """A row: how to make the rival, our layer and its naive form, and what is to be reached."""

    name: str
    shape: tuple[int, ...]
    rival: Callable[[], nn.Module]
    ours: Callable[..., nn.Module]
    naive: Callable[[nn.Module], nn.Module] | None
    """None where it would not find room, or launches a kernel for each channel of each image."""
    goals: dict[str, float] = field(default_factory=dict)


def shared(batch: int, channels: int, height: int, width: int, stride: int, degree: int,
           naive: Callable[[nn.Module], nn.Module] | None = Unfolded) -> Case:
    return Case(
        f'shared kernel, degree {degree}, {batch}x{channels}x{height}x{width}, stride {stride}',
        (batch, channels, height, width),
        lambda: nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
        lambda **_: SharedKANConv2d(3, stride, 1, basis=dict(type='Chebyshev', degree=degree)), naive,
        dict(forward=1.5, training=2.0, saved=1.05))


def conv(name: str, basis: dict, forward: float, training: float) -> Case:
    return Case(f'KANConv2d 32 -> 32, {name}, 2x32x32x32', (2, 32, 32, 32), lambda: nn.Conv2d(32, 32, 3, padding=1),
                lambda **args: KANConv2d(32, 32, 3, padding=1, basis=basis, **args), Autograd,
                dict(forward=forward, training=training, saved=1.1))


def linear(name: str, basis: dict) -> Case:
    return Case(f'KANLinear 784 -> 256, {name}, batch 512', (512, 784), lambda: nn.Linear(784, 256),
                lambda **args: KANLinear(784, 256, basis=basis, **args), Autograd)


class Forced(nn.Module):
    """A KAN layer that takes its fused kernels wherever there are some, or nowhere."""

    def __init__(self, layer: KANConv2d | KANLinear, fused: bool) -> None:
        super().__init__()
        self.layer, self.fused = layer, fused

    def forward(self, x: Tensor) -> Tensor:
        with patch.object(fused, 'FORCED', self.fused):
            return self.layer(x)


CASES = dict(
    shared=[shared(8, 512, 14, 14, 2, 3), shared(8, 2048, 7, 7, 1, 2), shared(1, 2048, 25, 42, 1, 2)],
    conv=[conv('Chebyshev, degree 3', dict(type='Chebyshev', degree=3), 4.2, 3.8),
          conv('8 Gaussians', dict(type='GaussianRBF', grid_size=8), 10, 7),
          conv('cubic B-spline, grid 5', dict(type='BSpline', grid_size=5), 11, 9)],
    linear=[linear('cubic B-spline, grid 5', dict(type='BSpline', grid_size=5)),
            linear('8 Gaussians', dict(type='GaussianRBF', grid_size=8)),
            linear('8 switches', dict(type='RSWAF', grid_size=8))],
)
SPLINE = dict(type='BSpline', grid_size=5)
GPU_CASES = {
    'shared-gpu': [shared(128, 512, 14, 14, 2, 3, None), shared(128, 2048, 7, 7, 1, 2, None),
                   shared(8, 2048, 25, 42, 1, 2, None)],
    'conv-gpu': [Case('KANConv2d 64 -> 64, cubic B-spline, grid 5, 32x64x56x56', (32, 64, 56, 56),
                      lambda: nn.Conv2d(64, 64, 3, padding=1),
                      lambda **args: KANConv2d(64, 64, 3, padding=1, basis=SPLINE, **args), Autograd)],
    'linear-gpu': [Case('KANLinear 512 -> 512, 8 Gaussians, 2^20 rows', (1 << 20, 512), lambda: nn.Linear(512, 512),
                        lambda **args: KANLinear(512, 512, basis=dict(type='GaussianRBF', grid_size=8), **args),
                        None)],
}
"""Too large for a CPU."""
