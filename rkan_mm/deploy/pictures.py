"""What a config does to pictures: the part that goes into the exported graph, and the part that stays outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rkan_mm.preflight.config import MM

from .errors import UnsupportedModelError


class Normalize(nn.Module):
    """Pictures (B, C, H, W) of 0 to 255, in RGB or gray, to what the model's data preprocessor makes of them.

    Args:
        preprocessor: of mmdet (``DetDataPreprocessor``) or mmpretrain (``ClsDataPreprocessor``).
        is_bgr: whether the config's pipeline gives it pictures in BGR, see `gives_bgr`.

    Raises:
        UnsupportedModelError: it is another one.
    """

    def __init__(self, preprocessor: nn.Module, is_bgr: bool = True) -> None:
        super().__init__()
        name = type(preprocessor).__name__
        if name not in ('DetDataPreprocessor', 'ClsDataPreprocessor'):
            raise UnsupportedModelError(f'{name} cannot be exported: of data preprocessors, DetDataPreprocessor and '
                                        'ClsDataPreprocessor are known.')
        self.divisor = preprocessor.pad_size_divisor
        self.pad_value = float(preprocessor.pad_value)
        swaps = getattr(preprocessor, 'to_rgb', getattr(preprocessor, '_channel_conversion', False))
        self.to_bgr = is_bgr != swaps
        mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
        self.register_buffer('mean', torch.zeros(1, 1, 1) if mean is None else mean.detach().clone())
        self.register_buffer('std', torch.ones(1, 1, 1) if std is None else std.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        x = image.to(self.mean.dtype)
        if self.to_bgr:
            x = x.flip(1)
        x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = ((n + self.divisor - 1) // self.divisor * self.divisor for n in x.shape[2:])
            x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), value=self.pad_value)
        return x

    @property
    def blank(self) -> list[int]:
        """The colour, in RGB, that becomes what the model pads with, as nearly as 0 to 255 has it."""
        colour = (self.mean + self.pad_value * self.std).flatten()
        return (colour.flip(0) if self.to_bgr else colour).round().clamp(0, 255).int().tolist()


def gives_bgr(pipeline: Sequence[dict]) -> bool:
    """Whether a pipeline of mm ends with BGR: what it reads from files does, arrays of a data set are taken as RGB."""
    bgr = any('LoadImage' in _kind(step) for step in pipeline)
    for step in pipeline:
        kind = _kind(step)
        if (kind == 'NumpyToPIL' and step.get('to_rgb', False)) or (kind == 'PILToNumpy' and step.get('to_bgr', False)):
            bgr = not bgr
    return bgr


def preparation(pipeline: Sequence[dict]) -> list[dict[str, Any]]:
    """What a test pipeline of mmdet or mmpretrain does to a picture, in words that a file can carry.

    Returns:
        In order, ``{'op': 'resize', 'size': [w, h], 'fit': ..., 'filter': ..., 'antialias': ...}`` and ``{'op': 'crop',
        'size': [w, h]}``, of the middle. Fit is ``stretch`` to this size, ``inside`` of it (or of the same turned by 90
        degrees) with the shape kept, or the edge that gets this length: ``short``, ``long``, ``width`` or ``height``.

    Raises:
        UnsupportedModelError: the pipeline has a step that does something else.

    Example:
        >>> preparation([dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1333, 800), keep_ratio=True)])
        [{'op': 'resize', 'size': [1333, 800], 'fit': 'inside', 'filter': 'bilinear', 'antialias': False}]
    """
    return [step for config in pipeline if (step := _step(config)) is not None]


def _kind(step: dict) -> str:
    """The name of mm's; configs in pure Python have the class itself, or its path where they were dumped."""
    name = step['type'] if isinstance(step['type'], str) else f'{step["type"].__module__}.{step["type"].__name__}'
    return name.rpartition('.')[2] if name.partition('.')[0] in MM else name


def _step(config: dict) -> dict[str, Any] | None:
    kind = _kind(config)
    if kind.startswith(('Load', 'Pack')) or kind in ('NumpyToPIL', 'PILToNumpy'):
        return None
    resampling = dict(filter=config.get('interpolation', 'bilinear'),
                      antialias=kind.startswith('torchvision/') or config.get('backend') == 'pillow')
    if not resampling['antialias'] and resampling['filter'] != 'bilinear':  # which cv2 does as no other
        pass
    elif kind == 'Resize' and 'scale' in config:
        fit = 'inside' if config.get('keep_ratio') else 'stretch'
        return dict(op='resize', size=_pair(config['scale']), fit=fit, **resampling)
    elif kind == 'ResizeEdge':
        return dict(op='resize', size=_pair(config['scale']), fit=config.get('edge', 'short'), **resampling)
    elif kind == 'torchvision/Resize':
        size = config['size']
        fit = 'stretch' if isinstance(size, Sequence) and len(size) == 2 else 'short'
        return dict(op='resize', size=_pair(size)[::-1], fit=fit, **resampling)
    elif kind == 'CenterCrop' and not {'auto_pad', 'efficientnet_style'} & {name for name, on in config.items() if on}:
        return dict(op='crop', size=_pair(config['crop_size']))
    elif kind == 'torchvision/CenterCrop':
        return dict(op='crop', size=_pair(config['size'])[::-1])
    settings = ", ".join(f'{name}={value}' for name, value in config.items() if name != 'type')
    raise UnsupportedModelError(
        f'The test pipeline has a step {kind} ({settings}), which an exported file cannot describe: it can '
        'Resize, ResizeEdge, CenterCrop and those of torchvision; by cv2, with bilinear interpolation only.')


def _pair(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else [*size] * (3 - len(size))
