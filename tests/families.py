"""The sixteen backbone families of RKAN: configs of the reference's versions, by class and version."""

from __future__ import annotations

import re


def attention(depth: int, kind: str, stages: tuple[bool, ...] = (True,) * 4, **args) -> dict:
    """A ResNet of mmpretrain with an attention layer in each residual block of some stages."""
    return dict(type='rkan_mm.PluggedBackbone', backbone=dict(type='mmpretrain.ResNet', depth=depth),
                plugins=[dict(cfg=dict(type=f'rkan_mm.{kind}', **args), stages=stages)])


def resnest(depth: int, avg_down_stride: bool = False) -> dict:
    """The reference's ResNeSt has torchvision's stem and strided 1x1 convolutions in the shortcuts."""
    stem = dict(type='ConvModule', in_channels=3, out_channels=64, kernel_size=7, stride=2, padding=3,
                norm_cfg=dict(type='BN'))
    every_second = dict(type='torch.nn.MaxPool2d', kernel_size=1, stride=2)
    return dict(type='rkan_mm.PluggedBackbone', backbone=dict(type='mmpretrain.ResNeSt', depth=depth,
                                                               avg_down_stride=avg_down_stride),
                replace={'stem': stem, **{f'layer{i}.0.downsample.0': every_second for i in (2, 3, 4)}})


def densenet(arch: str | dict) -> dict:
    """The reference's DenseNet has no ReLU behind the last norm."""
    return dict(type='rkan_mm.PluggedBackbone', backbone=dict(type='mmpretrain.DenseNet', arch=arch),
                replace={'transitions.3.1': dict(type='torch.nn.Identity')})


def regnet(version: str) -> dict:
    kind, size = re.fullmatch(r'regnet_([xy])_(.+)', version).groups()
    size = size.replace('_', '.').replace('8gf', '8.0gf')
    if kind == 'y':
        return dict(type='rkan_mm.RegNetY', arch=size)
    return dict(type='mmpretrain.RegNet', arch=f'regnetx_{size}')


def _depth(version: str) -> int:
    return int(re.search(r'\d+', version.replace('res2net', ''))[0])


# the reference's class: function from its version to the config of a backbone of ours
BACKBONES = dict(
    RKANet=lambda version: dict(type='mmpretrain.ResNet', depth=_depth(version)),
    RKANet_D=lambda version: dict(type='mmpretrain.ResNetV1d', depth=_depth(version)),
    RKANeXt=lambda version: dict(type='mmpretrain.ResNeXt', depth=_depth(version), groups=32,
                                 width_per_group=int(version[-2])),
    RKAN_WideResNet=lambda version: dict(type='mmpretrain.ResNet', depth=_depth(version), base_channels=128,
                                         expansion=2),
    RKANeSt=lambda version: resnest(_depth(version)),
    RKAN_Res2Net=lambda version: dict(type='mmpretrain.Res2Net', depth=_depth(version), scales=4, base_width=26,
                                      deep_stem=False, avg_down=False),
    RKAN_ECANet=lambda version: attention(_depth(version), 'ECA'),
    RKAN_SENet=lambda version: attention(_depth(version), 'SE'),
    RKAN_GCNet=lambda version: attention(_depth(version), 'GlobalContext', stages=(False, True, True, True)),
    RKAN_CBAM=lambda version: attention(_depth(version), 'CBAM'),
    RKAN_SANet=lambda version: attention(_depth(version), 'ShuffleAttention'),
    RKAN_SimAM=lambda version: attention(_depth(version), 'SimAM'),
    RKAN_ELA=lambda version: attention(_depth(version), 'ELA'),
    RKAN_PyramidNet=lambda version: dict(type='rkan_mm.PyramidNet', depth=_depth(version)),
    RKAN_RegNet=regnet,
    RKAN_DenseNet=lambda version: densenet(version.removeprefix('densenet')),
)
