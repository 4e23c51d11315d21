"""Attention layers (B, C, H, W) -> (B, C, H, W), usable wherever mmcv builds plugin layers.

`RKAN` (arXiv 2410.05500) puts them behind the last norm of a residual block: in mmdet's ResNet by ``plugins=``, in any
other one by `PluggedBackbone`.
"""

from __future__ import annotations

import math

import torch
from mmcv.cnn.bricks import ContextBlock
from torch import Tensor, nn

from rkan_mm.models.ops import HALF
from rkan_mm.registry import MODELS

# size: kernel, channels in a group of the convolution, groups of the norm
ELA_SIZES = dict(T=(5, 1, 32), B=(7, 1, 16), S=(5, 8, 16), L=(7, 8, 16))


@MODELS.register_module()
class SE(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507): x * s, with s from two 1x1 convolutions of the mean of x.

    Args:
        in_channels: channels of the input and the output.
        ratio: ``in_channels / ratio`` units in the middle, at least one.
        squeeze_channels: units in the middle, instead of ``ratio``.
        bias: of both 1x1 convolutions. RKAN's SENet has none.

    Example:
        >>> SE(64)(torch.rand(1, 64, 7, 7)).shape
        torch.Size([1, 64, 7, 7])
    """

    _abbr_ = 'se'

    def __init__(self, in_channels: int, ratio: int = 16, squeeze_channels: int | None = None,
                 bias: bool = False) -> None:
        super().__init__()
        middle = squeeze_channels or max(1, in_channels // ratio)
        self.squeeze = nn.Conv2d(in_channels, middle, 1, bias=bias)
        self.excite = nn.Conv2d(middle, in_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)  # (B, C, H, W) -> (B, C, 1, 1)
        return x * self.excite(self.squeeze(pooled).relu()).sigmoid()


@MODELS.register_module()
class ECA(nn.Module):
    """Efficient channel attention (arXiv 1910.03151): x * s, with s from a convolution along the channels' means.

    Args:
        in_channels: channels of the input and the output.
        gamma, beta: the kernel is the odd number at or above ``(log2(in_channels) + beta) / gamma``, rounded down.
    """

    _abbr_ = 'eca'

    def __init__(self, in_channels: int, gamma: float = 2, beta: float = 1) -> None:
        super().__init__()
        kernel = int(abs((math.log2(in_channels) + beta) / gamma)) | 1
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))[:, None]  # (B, C, H, W) -> (B, 1, C)
        return x * self.conv(pooled).sigmoid()[:, 0, :, None, None]


@MODELS.register_module()
class CBAM(nn.Module):
    """Convolutional block attention (arXiv 1807.06521): channels by their mean and maximum, then places by theirs.

    Args:
        in_channels: channels of the input and the output.
        ratio: ``in_channels / ratio`` units in the middle of the channels' MLP, at least one.
        kernel_size: of the convolution over places.
    """

    _abbr_ = 'cbam'

    def __init__(self, in_channels: int, ratio: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        middle = max(1, in_channels // ratio)
        self.mlp = nn.Sequential(nn.Conv2d(in_channels, middle, 1, bias=False), nn.ReLU(),
                                 nn.Conv2d(middle, in_channels, 1, bias=False))
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        places = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)  # (B, C, H, W) -> (B, 2, H, W)
        return x * self.spatial(places).sigmoid()


@MODELS.register_module()
class ShuffleAttention(nn.Module):
    """SA (arXiv 2102.00240): in each group half of the channels are weighed as wholes, half by place; then shuffled.

    Args:
        in_channels: channels of the input and the output.
        groups: number of groups, which share their weights.

    Raises:
        ValueError: ``in_channels`` is not a multiple of ``2 * groups``.
    """

    _abbr_ = 'shuffle_attention'

    def __init__(self, in_channels: int, groups: int = 64) -> None:
        super().__init__()
        half, rest = divmod(in_channels, 2 * groups)
        if rest or not half:
            raise ValueError(f'ShuffleAttention: {groups} groups need a multiple of {2 * groups} channels, got '
                             f'{in_channels}; give fewer groups')
        self.groups = groups
        self.channel_weight = nn.Parameter(torch.zeros(1, half, 1, 1))
        self.channel_bias = nn.Parameter(torch.ones(1, half, 1, 1))
        self.spatial_norm = nn.GroupNorm(half, half)
        self.spatial_weight = nn.Parameter(torch.zeros(1, half, 1, 1))
        self.spatial_bias = nn.Parameter(torch.ones(1, half, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape
        wholes, places = x.unflatten(1, (self.groups, -1)).flatten(0, 1).chunk(2, 1)  # each (B * groups, half, H, W)
        gate = self.channel_weight * wholes.mean((2, 3), keepdim=True) + self.channel_bias
        wholes = wholes * gate.sigmoid()
        gate = self.spatial_weight * self.spatial_norm(places) + self.spatial_bias
        places = places * gate.sigmoid()
        out = torch.cat([wholes, places], 1).reshape(size)
        return out.unflatten(1, (2, -1)).transpose(1, 2).reshape(size)  # channel (i, j) of (2, C / 2) -> (j, i)


@MODELS.register_module()
class SimAM(nn.Module):
    """SimAM (ICML 2021, Yang et al.): x * sigmoid(d / (4 (sum d / (HW - 1) + e)) + 1/2), with d = (x - mean)^2.

    Args:
        in_channels: channels of the input and the output; not needed here, and taken so that all plugins build alike.
        e_lambda: e in the formula.
    """

    _abbr_ = 'simam'

    def __init__(self, in_channels: int, e_lambda: float = 1e-4) -> None:
        super().__init__()
        self.e_lambda = e_lambda

    def forward(self, x: Tensor) -> Tensor:
        d = (x - x.mean((2, 3), keepdim=True)).square()
        places = x.shape[2] * x.shape[3]
        rest = places - 1 + (places == 1)  # one place: d and its sum are 0
        # half precision cannot hold the sum over a large map
        half = d.dtype in HALF or torch.jit.is_tracing()
        variance = d.mean((2, 3), keepdim=True) * (places / rest) if half else d.sum((2, 3), keepdim=True) / rest
        return x * (d / (4 * (variance + self.e_lambda)) + 0.5).sigmoid()

    def extra_repr(self) -> str:
        return f'e_lambda={self.e_lambda}'


@MODELS.register_module()
class ELA(nn.Module):
    """Efficient local attention (arXiv 2403.01123): x * a_h * a_w, from the means of rows and columns.

    Args:
        in_channels: channels of the input and the output.
        size: ``'T'``, ``'B'``, ``'S'`` or ``'L'``, the paper's sizes; RKAN takes L.

    Raises:
        ValueError: no such size, or ``in_channels`` do not divide into its groups.
    """

    _abbr_ = 'ela'

    def __init__(self, in_channels: int, size: str = 'L') -> None:
        super().__init__()
        if size not in ELA_SIZES:
            raise ValueError(f'ELA: no size {size!r}; there are {", ".join(ELA_SIZES)}')
        kernel, width, norm_groups = ELA_SIZES[size]
        if in_channels % width or in_channels % norm_groups:
            raise ValueError(f'ELA: size {size!r} needs a multiple of {math.lcm(width, norm_groups)} channels, got '
                             f'{in_channels}')
        self.conv = nn.Conv1d(in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels // width,
                              bias=False)
        self.norm = nn.GroupNorm(norm_groups, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.norm(self.conv(x.mean(axis))).sigmoid() for axis in (3, 2))  # (B, C, H), (B, C, W)
        return x * rows[..., None] * columns[..., None, :]


@MODELS.register_module()
class GlobalContext(ContextBlock):
    """Global context (GCNet, arXiv 1904.11492): mmcv's ContextBlock with the reference's ratio and without biases.

    Args:
        in_channels: channels of the input and the output.
        ratio: of the channels in the middle.
        bias: of the 1x1 convolutions; mmcv's own block has them.
        kwargs: see :class:`mmcv.cnn.bricks.ContextBlock`.
    """

    _abbr_ = 'context_block'

    def __init__(self, in_channels: int, ratio: float = 1 / 4, bias: bool = False, **kwargs) -> None:
        super().__init__(in_channels, ratio, **kwargs)
        if not bias:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.bias = None
