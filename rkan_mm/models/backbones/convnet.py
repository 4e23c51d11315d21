"""The small plain net of Convolutional KANs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mmcv.cnn import build_activation_layer, build_conv_layer, build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn

from rkan_mm.registry import MODELS


@MODELS.register_module()
class ConvNet(BaseModule):
    """Convolutions, each with a norm, an activation and a 2x2 max-pool behind it: the nets of arXiv 2406.13155.

    (B, in_channels, H, W) -> ((B, channels[-1] * h * w),), flattened for a dense head; with two 3x3 convolutions and no
    padding 28 px come down to h = w = 5.

    Args:
        channels: output channels of the convolutions.
        in_channels: channels of the images.
        kernel_size, padding: of the convolutions.
        conv_cfg: config of the convolutions, e.g. ``dict(type='KANConv2d', bias=False)``; None is an ordinary one.
        norm_cfg: config of the norm, None for none.
        act_cfg: config of the activation, None for none.
        init_cfg: as in mmengine; None leaves PyTorch's initialisation.

    Example:
        >>> ConvNet((5, 10), conv_cfg=dict(type='KANConv2d'), act_cfg=None)(torch.rand(2, 1, 28, 28))[0].shape
        torch.Size([2, 250])
    """

    def __init__(self,
                 channels: Sequence[int],
                 in_channels: int = 1,
                 kernel_size: int = 3,
                 padding: int = 0,
                 conv_cfg: dict | None = None,
                 norm_cfg: dict | None = None,
                 act_cfg: dict | None = dict(type='ReLU'),  # noqa: B006
                 init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.layers = Sequential()
        for inputs, outputs in pairwise((in_channels, *channels)):
            self.layers.append(build_conv_layer(conv_cfg, inputs, outputs, kernel_size, padding=padding))
            if norm_cfg is not None:
                self.layers.append(build_norm_layer(norm_cfg, outputs)[1])
            if act_cfg is not None:
                self.layers.append(build_activation_layer(act_cfg))
            self.layers.append(nn.MaxPool2d(2))
        self.layers.append(nn.Flatten())

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layers(x),)
