"""RegNetY: mmpretrain's RegNet with squeeze-and-excitation. It imports mmpretrain, and is imported when it is built."""

from __future__ import annotations

from collections.abc import Sequence

from mmpretrain.models.backbones import RegNet

from .plugged import plug

ARCHS = {
    name: dict(w0=w0, wa=wa, wm=wm, group_w=group_w, depth=depth, bot_mul=1.0) for name, w0, wa, wm, group_w, depth in (
        ('400mf', 48, 27.89, 2.09, 8, 16),
        ('800mf', 56, 38.84, 2.4, 16, 14),
        ('1.6gf', 48, 20.71, 2.65, 24, 27),
        ('3.2gf', 80, 42.63, 2.66, 24, 21),
        ('8.0gf', 192, 76.82, 2.19, 56, 17),
        ('16gf', 200, 106.23, 2.48, 112, 18),
        ('32gf', 232, 115.89, 2.53, 232, 20),
    )
}


class RegNetY(RegNet):
    """RegNetY (arXiv 2003.13678): a RegNet whose blocks squeeze and excite in front of their last convolution.

    Args:
        arch: ``'400mf'``, ``'800mf'``, ``'1.6gf'``, ``'3.2gf'``, ``'8.0gf'``, ``'16gf'``, ``'32gf'``, or a dict as mm's
            RegNet takes it.
        se_ratio: units in the middle of an SE, over the channels that its block takes in.
        kwargs: of mmpretrain's RegNet: ``out_indices, frozen_stages, norm_cfg, norm_eval, with_cp, init_cfg``, ...

    Raises:
        ValueError: unknown ``arch``.

    Example:
        >>> model = RegNetY('400mf', out_indices=(0, 1, 2, 3))
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 48, 16, 16), (1, 104, 8, 8), (1, 208, 4, 4), (1, 440, 2, 2)]
    """

    def __init__(self, arch: str | dict = '400mf', se_ratio: float = 0.25, **kwargs) -> None:
        if isinstance(arch, str) and arch not in ARCHS:
            raise ValueError(f'RegNetY: no arch {arch!r}; there are {", ".join(ARCHS)}')
        super().__init__(ARCHS[arch] if isinstance(arch, str) else arch, **kwargs)
        for name in self.res_layers:
            for block in getattr(self, name):
                squeeze_channels = round(se_ratio * block.conv1.in_channels)
                plug(block, dict(type='rkan_mm.SE', squeeze_channels=squeeze_channels, bias=True), 'after_conv2')
        self._freeze_stages()  # with the new layers

    def adjust_width_group(self, widths: Sequence[int], bottleneck_ratio: Sequence[float],
                           groups: Sequence[int]) -> tuple[list[int], list[int]]:
        """Make widths multiples of the group's, to the nearest, but not below 90 %: so torchvision and RKAN have it."""
        groups = [min(group, width) for group, width in zip(groups, widths, strict=True)]
        nearest = [max(group, (2 * width + group) // (2 * group) * group)
                   for group, width in zip(groups, widths, strict=True)]
        return [new + group if new < 0.9 * width else new
                for new, group, width in zip(nearest, groups, widths, strict=True)], groups
