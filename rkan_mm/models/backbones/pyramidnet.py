"""PyramidNet: a residual network whose blocks widen step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, Sequential
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from rkan_mm.registry import MODELS

ARCHS = {  # blocks of the stages, expansion, alpha
    18: ((2, 2, 2, 2), 1, 48),
    34: ((3, 4, 6, 3), 1, 48),
    50: ((3, 4, 6, 3), 4, 200),
    101: ((3, 4, 23, 3), 4, 270),
    152: ((3, 8, 36, 3), 4, 270),
    200: ((3, 24, 36, 3), 4, 240),
}


class PyramidBlock(BaseModule):
    """Convolutions with a norm in front of the first, between them and behind the last; zeros pad the shortcut.

    (B, in_channels, H, W) -> (B, channels * expansion, H / stride, W / stride), rounded up.

    Args:
        in_channels: channels of the input.
        channels: channels in the block.
        stride: of the (first) 3x3 convolution.
        expansion: 1 is the basic block of two 3x3 convolutions, more the bottleneck 1x1, 3x3, 1x1.
        norm_cfg: config of the norms.
        with_cp: whether to recompute the block in the backward pass, to save memory.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int, norm_cfg: dict,
                 with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.out_channels = channels * expansion
        if expansion == 1:
            widths, kernels, strides = [channels, channels], [3, 3], [stride, 1]
        else:
            widths, kernels, strides = [channels, channels, self.out_channels], [1, 3, 1], [1, stride, 1]
        self.depth = len(widths)
        self.norm1 = build_norm_layer(norm_cfg, in_channels)[1]
        for i, (width, kernel, step) in enumerate(zip(widths, kernels, strides, strict=True), 1):
            self.add_module(f'conv{i}', nn.Conv2d(in_channels, width, kernel, step, kernel // 2, bias=False))
            self.add_module(f'norm{i + 1}', build_norm_layer(norm_cfg, width)[1])
            in_channels = width
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def _forward(self, x: Tensor) -> Tensor:
        out = self.norm1(x)
        for i in range(1, self.depth + 1):
            out = getattr(self, f'norm{i + 1}')(getattr(self, f'conv{i}')(out if i == 1 else out.relu()))
        shortcut = self.pool(x)
        return out + F.pad(shortcut, (0, 0, 0, 0, 0, out.shape[1] - shortcut.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


@MODELS.register_module()
class PyramidNet(BaseModule):
    """PyramidNet (arXiv 1610.02915): the width grows by ``alpha`` in all, by the same step in each block.

    (B, 3, H, W) -> maps of stages 1 to 4 at 1/4, 1/8, 1/16, 1/32 (``stem='cifar'``: 1, 1/2, 1/4, 1/8), rounded up.
    A norm and an activation follow the last stage, ``layer4`` itself is the map in front of them.

    Args:
        depth: 18, 34, 50, 101, 152 or 200.
        alpha: growth of the width over all blocks; by default RKAN's (48, 48, 200, 270, 270, 240).
        stem: ``'imagenet'`` (7x7 with stride 2, max-pool) or ``'cifar'`` (3x3).
        stage_blocks: number of blocks of each stage, instead of those of ``depth``.
        in_channels: channels of the image.
        stem_channels: channels behind the stem, from which the width grows.
        strides: of the stages.
        out_indices: stages whose maps come out.
        frozen_stages: the stem (0 or more) and so many stages are frozen; -1 freezes nothing.
        norm_cfg: config of the norms.
        norm_eval: whether batch norms stay in eval mode.
        with_cp: whether to recompute blocks in the backward pass, to save memory.
        init_cfg: see mmengine; None is Kaiming for the convolutions.

    Raises:
        ValueError: unknown ``depth`` or ``stem``; an index beyond the stages.

    Example:
        >>> model = PyramidNet(depth=50, out_indices=(0, 1, 2, 3))
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 408, 16, 16), (1, 608, 8, 8), (1, 904, 4, 4), (1, 1056, 2, 2)]
    """

    def __init__(self,
                 depth: int = 50,
                 alpha: float | None = None,
                 stem: str = 'imagenet',
                 stage_blocks: Sequence[int] | None = None,
                 in_channels: int = 3,
                 stem_channels: int | None = None,
                 strides: Sequence[int] = (1, 2, 2, 2),
                 out_indices: Sequence[int] = (3, ),
                 frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN', requires_grad=True),  # noqa: B006
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg or [
            dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])])
        if depth not in ARCHS:
            raise ValueError(f'PyramidNet: no depth {depth!r}; there are {", ".join(map(str, ARCHS))}')
        if stem not in ('imagenet', 'cifar'):
            raise ValueError(f"PyramidNet: no stem {stem!r}; there are 'imagenet', 'cifar'")
        default_blocks, expansion, default_alpha = ARCHS[depth]
        blocks = tuple(stage_blocks or default_blocks)
        if not all(0 <= i < len(blocks) for i in out_indices):
            raise ValueError(f'PyramidNet: out_indices {tuple(out_indices)} of {len(blocks)} stages')
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval

        width = stem_channels or (64 if stem == 'imagenet' else 16)
        kernel, stride = (7, 2) if stem == 'imagenet' else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2, bias=False)
        self.norm1 = build_norm_layer(norm_cfg, width)[1]
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == 'imagenet' else nn.Identity()

        step = (default_alpha if alpha is None else alpha) / sum(blocks)
        channels, exact_width = width, float(width)
        self.res_layers = []
        for i, (count, stride) in enumerate(zip(blocks, strides[:len(blocks)], strict=True), 1):
            layer = Sequential()
            for j in range(count):
                exact_width += step
                layer.append(PyramidBlock(channels, round(exact_width), stride if j == 0 else 1, expansion, norm_cfg,
                                          with_cp))
                channels = layer[-1].out_channels
            self.add_module(f'layer{i}', layer)
            self.res_layers.append(f'layer{i}')
        self.norm2 = build_norm_layer(norm_cfg, channels)[1]
        self.feat_dim = channels
        self._freeze_stages()

    def _freeze_stages(self) -> None:
        frozen = [self.conv1, self.norm1] if self.frozen_stages >= 0 else []
        for module in frozen + [getattr(self, name) for name in self.res_layers[:max(0, self.frozen_stages)]]:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> PyramidNet:
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.maxpool(self.relu(self.norm1(self.conv1(x))))
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i == len(self.res_layers) - 1:
                x = self.relu(self.norm2(x))
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)
