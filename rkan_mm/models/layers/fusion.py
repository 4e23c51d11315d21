"""Fusions: how the residual of an RKAN block joins the output of its stage (arXiv 2410.05500)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rkan_mm.registry import FUSIONS

from .attention import SE


@FUSIONS.register_module()
class Addition(nn.Module):
    """out + residual.

    Args:
        channels: channels of both; not needed here, and taken so that all fusions are built alike.

    Example:
        >>> Addition(channels=8)(torch.zeros(1, 8, 4, 4), torch.ones(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, out: Tensor, residual: Tensor) -> Tensor:
        return out + residual


@FUSIONS.register_module()
class Gating(nn.Module):
    """g * out + (1 - g) * residual, where the gate g is the sigmoid of a 1x1 convolution of the residual.

    Args:
        channels: channels of ``out`` and ``residual``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, out: Tensor, residual: Tensor) -> Tensor:
        gate = self.gate(residual).sigmoid()
        if not residual.dtype == out.dtype == gate.dtype:  # under autocast, which does not make them alike for lerp
            dtype = torch.promote_types(torch.promote_types(residual.dtype, out.dtype), gate.dtype)
            residual, out, gate = residual.to(dtype), out.to(dtype), gate.to(dtype)
        return torch.lerp(residual, out, gate)


@FUSIONS.register_module('SE')
class SEFusion(SE):
    """out + s * residual, where s is the squeeze-and-excitation (arXiv 1709.01507) of the residual.

    Args:
        channels: channels of ``out`` and ``residual``.
        ratio: ``channels / ratio`` units in the middle, at least one.
        bias: of both 1x1 convolutions. The reference has none, except in ResNeXt and Wide ResNet.
    """

    def __init__(self, channels: int, ratio: int = 16, bias: bool = False) -> None:
        super().__init__(channels, ratio, bias=bias)

    def forward(self, out: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]  # a fusion takes two
        return out + super().forward(residual)


@FUSIONS.register_module('Context')
class ContextGating(SE):
    """out + g * residual with a gate that sees the stage: g = sigmoid(squeeze-and-excitation of out + a map of places).

    Args:
        channels: channels of ``out`` and ``residual``.
        ratio: ``channels / ratio`` units in the middle of the squeeze-and-excitation (arXiv 1709.01507), at least one.
    """

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__(channels, ratio)
        self.place = nn.Conv2d(channels, 1, 1)

    def forward(self, out: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]  # a fusion takes two
        channel = self.excite(self.squeeze(out.mean((2, 3), keepdim=True)).relu())  # (B, C, 1, 1)
        return out + residual * (channel + self.place(out)).sigmoid()  # (B, C, H, W)
