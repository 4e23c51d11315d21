"""The convolutional feature extractors in front of FasterKAN heads, and in front of the MLP they were compared with."""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from rkan_mm.models.layers.attention import SE
from rkan_mm.models.layers.folding import norms_first
from rkan_mm.registry import MODELS


@MODELS.register_module()
class EnhancedFeatureExtractor(BaseModule):
    """Stem, two residual stages with SE, self-attention and average pooling: (B, in_channels, 28, 28) -> ((B, 256),).

    ``arch='faster_kan'`` is the extractor of FasterKAN (AthanasiosDelis/faster-kan), with 1,077,057 parameters;
    ``arch='mlp'`` the one that a report of July 2024 put in front of an MLP, with 3,270,273: its stages have five
    convolutions with biases, and one more stands before each separable convolution and the attention. The report's
    table fixes their layers, but not where the five join; here the first is the source of two residual pairs.

    Args:
        arch: ``'faster_kan'`` or ``'mlp'``.
        in_channels: channels of the images.
        drop_rate: of the dropout behind each pooling.
        init_cfg: as in mmengine; None leaves PyTorch's initialisation.

    Raises:
        ValueError: no such ``arch``.
    """

    def __init__(self, arch: str = 'faster_kan', in_channels: int = 1, drop_rate: float = 0.25,
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if arch not in ('faster_kan', 'mlp'):
            raise ValueError(f"EnhancedFeatureExtractor: arch must be 'faster_kan' or 'mlp', got {arch!r}")
        large = arch == 'mlp'
        stage = FiveConvStage if large else ResidualBlock

        def pool() -> list[nn.Module]:
            return [nn.MaxPool2d(2), nn.Dropout(drop_rate)]

        separable = [nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1, groups=128)] if large else [
            nn.Conv2d(64, 64, 3, groups=64)]
        self.layers = Layers(
            nn.Conv2d(in_channels, 32, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(32), *pool(),  # 14 x 14
            stage(32, 64), SE(64), *pool(),  # 7 x 7
            *separable, nn.Conv2d(128 if large else 64, 128, 1), nn.ReLU(),
            stage(128, 256), SE(256), *pool(),
            *([nn.Conv2d(256, 256, 2)] if large else []),  # 2 x 2
            SelfAttention2d(256), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layers(x),)


class Layers(Sequential):
    """Layers in turn, whose norms do not belong to the convolutions before them: an activation lies between."""

    named_children = norms_first


def conv_bn(inputs: int, outputs: int, kernel_size: int = 3, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias),
                         nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """ReLU(BN conv ReLU BN conv x + BN conv1x1 x), (B, inputs, H, W) -> (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = conv_bn(inputs, outputs, 1)
        self.conv1, self.conv2 = conv_bn(inputs, outputs), conv_bn(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.conv1(x))))


class FiveConvStage(nn.Module):
    """A convolution to ``outputs`` channels and two residual pairs of them, all with biases and BN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, bias=True)
        self.pairs = nn.ModuleList(nn.ModuleList(conv_bn(outputs, outputs, bias=True) for _ in range(2))
                                   for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv1, conv2 in self.pairs:
            x = F.relu(x + conv2(F.relu(conv1(x))))
        return x


class SelfAttention2d(nn.Module):
    """x + gamma * softmax(q k^T) v over places, of 1x1 convolutions; gamma begins at 0, the logits are unscaled."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // reduction, 1)
        self.key = nn.Conv2d(channels, channels // reduction, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(self.value.weight.new_zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # (B, H W, C)
        return x + self.gamma * attended.transpose(1, 2).reshape(x.shape)
