"""The RKAN block: from the input of a backbone stage to the residual of its output."""

from __future__ import annotations

from typing import Literal

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.model import BaseModule, update_init_info
from torch import Tensor, nn

from rkan_mm.registry import MODELS

from .layers import GroupedKANConv2d, SharedKANConv2d
from .layers.activated_kan_conv import activated_kan_conv2d
from .layers.folding import norms_first
from .layers.recompute import with_checkpoint


@MODELS.register_module()
class RKANBlock(BaseModule):
    """Residual branch of RKAN, newest design (arXiv 2410.05500).

    1x1 conv, SiLU, KAN conv, norm, 1x1 conv, SiLU, on the backbone's last stage a second KAN conv, norm:
    (B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), rounded up.

    Args:
        in_channels, out_channels, stride: of the backbone stage.
        last: whether there is the second KAN convolution.
        reduction: the KAN convolution sees ``in_channels // reduction`` channels.
        expansion: where given, it sees ``in_channels * expansion`` channels instead (RKAN-L: 2, 4 or 6).
        basis: config of the first KAN convolution's basis.
        second_basis: what the second one changes in ``basis``; None takes the published choice (degree 2).
        normalization: of both KAN convolutions, before their functions, see :class:`SharedKANConv2d`; None takes what
            the basis needs. With ``'none'`` and degree 1 they are linear: the block without KAN, to compare with.
        shortcut: whether a strided 1x1 convolution with a norm is added to the residual.
        norm_cfg: norms of this block, independent of the backbone's.
        act_cfg: activation behind the two 1x1 convolutions, or None.
        norm_between: whether there is a norm behind the first KAN convolution. Without it, without activations and
            with a reduction of 1 this is the block of the paper's first version.
        zero_init_residual: start the last norm at zero, so that the model begins as its plain backbone. The reference
            does not.
        residual_init: weight that the last norm starts at, as LayerScale (arXiv 2103.17239) does; the reference has 1.
        kernel_size: odd, of both KAN convolutions; larger kernels cost next to no parameters.
        with_base: whether the KAN convolutions have their linear branch beside the functions.
        norm_before: whether there is a norm in front of the functions of both KAN convolutions, so that they see inputs
            of unit variance, where they bend; the reference has none.
        groups: of channels that share a kernel in both KAN convolutions; the reference has one.
            ``'channels'`` gives each channel its own.
        start: of both, ``'published'`` or ``'orthonormal'``, see :class:`SharedKANConv2d`; goes with ``norm_before``.
        with_cp: whether to compute the block again in the backward pass instead of keeping its activations.
        init_cfg: see mmengine.

    Raises:
        ValueError: ``reduction`` exceeds ``in_channels``; unknown basis; an even ``kernel_size``; ``groups`` that do
            not divide the channels.

    Example:
        >>> block = RKANBlock(in_channels=64, out_channels=128, stride=2, last=True)
        >>> block(torch.rand(2, 64, 14, 14)).shape
        torch.Size([2, 128, 7, 7])
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 stride: int | tuple[int, int] = 1,
                 last: bool = False,
                 reduction: int = 2,
                 expansion: int | None = None,
                 basis: dict = dict(type='Chebyshev', degree=3),  # noqa: B006
                 second_basis: dict | None = None,
                 normalization: str | None = None,
                 shortcut: bool = False,
                 norm_cfg: dict = dict(type='BN'),  # noqa: B006
                 act_cfg: dict | None = dict(type='SiLU'),  # noqa: B006
                 norm_between: bool = True,
                 zero_init_residual: bool = False,
                 residual_init: float = 1.0,
                 kernel_size: int = 3,
                 with_base: bool = True,
                 norm_before: bool = False,
                 groups: int | Literal['channels'] = 1,
                 start: str = 'published',
                 with_cp: bool = False,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        channels = in_channels // reduction if expansion is None else in_channels * expansion
        if channels < 1:
            raise ValueError(f'RKANBlock: reduction {reduction} leaves none of {in_channels} input channels')
        if kernel_size % 2 == 0:
            raise ValueError(f'RKANBlock: kernel_size must be odd, got {kernel_size}')
        self.residual_init = 0.0 if zero_init_residual else residual_init
        self.with_cp = with_cp
        kan: dict = dict(padding=kernel_size // 2, normalization=normalization, with_base=with_base, start=start)

        def kan_conv(channels: int, **args) -> SharedKANConv2d | GroupedKANConv2d:
            if groups == 1:
                return SharedKANConv2d(kernel_size, **args, **kan)
            return GroupedKANConv2d(channels, channels if groups == 'channels' else groups, kernel_size=kernel_size,
                                    **args, **kan)

        self.reduce = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.act = build_activation_layer(act_cfg) if act_cfg else nn.Identity()
        self.norm_before1 = build_norm_layer(norm_cfg, channels)[1] if norm_before else nn.Identity()
        self.kan1 = kan_conv(channels, stride=stride, basis=basis)
        self.norm1 = build_norm_layer(norm_cfg, channels)[1] if norm_between else nn.Identity()
        self.expand = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.kan2, self.norm_before2 = None, nn.Identity()
        if last:
            if second_basis is None:
                second_basis = type(self.kan1.basis).second
            if norm_before:
                self.norm_before2 = build_norm_layer(norm_cfg, out_channels)[1]
            self.kan2 = kan_conv(out_channels, basis={**basis, **second_basis})
        self.norm2 = build_norm_layer(norm_cfg, out_channels)[1]
        self.shortcut = None
        if shortcut:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                                          build_norm_layer(norm_cfg, out_channels)[1])
        self._init_residual()

    def _init_residual(self) -> None:
        if self.residual_init != 1:
            nn.init.constant_(self.norm2.weight, self.residual_init)
            if self.shortcut is not None:
                nn.init.constant_(self.shortcut[1].weight, self.residual_init)

    def init_weights(self) -> None:
        """PyTorch's default for convolutions and norms, as in the reference."""
        for module in self.modules():
            if module is not self and hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        self._init_residual()
        if hasattr(self, '_params_init_info'):
            update_init_info(self, 'Initialized by user-defined `init_weights` in RKANBlock ')
        super().init_weights()

    named_children = norms_first

    def forward(self, x: Tensor) -> Tensor:
        return with_checkpoint(self, self._forward, x) if self.with_cp else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        residual = activated_kan_conv2d(self.reduce(x), self.act, self.norm_before1, self.kan1, self.norm1)
        residual = self.expand(residual)
        if self.kan2 is None:
            residual = self.norm2(self.act(residual))
        else:
            residual = activated_kan_conv2d(residual, self.act, self.norm_before2, self.kan2, self.norm2)
        if self.shortcut is not None:
            residual = residual + self.shortcut(x)
        return residual
