"""Parts of mm that compute with a convolution's weight by themselves, which is the base branch alone in a KAN layer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rkan_mm.teaching import teach

from .folding import Folding

PARTS = (
    ('mmpretrain.models.backbones.repvgg', 'RepVGGBlock', 'switch_to_deploy'),
    ('mmpretrain.models.backbones.mobileone', 'MobileOneBlock', 'switch_to_deploy'),
    ('mmpretrain.models.backbones.sparse_resnet', 'SparseResNet', 'dense_model_to_sparse'),
    ('mmdet.models.dense_heads.tood_head', 'TaskDecomposition', '__init__'),
    ('mmcv.cnn.rfsearch.operator', 'Conv2dRFSearchOp', '__init__'),
)
"""Module, class, and the method from which on functions would be left out."""

OR_ELSE = {'Conv2dRFSearchOp': ', or pass over these by RFSearchHook(config=dict(search=dict(skip_layer=[...])))'}
"""Of a part that can be told to pass over layers, by parts of their names."""


def teach_parts() -> None:
    """Have them refuse KAN layers, those that are imported by now: what is to hold a KAN layer is."""
    for module, cls, method in PARTS:
        if (part := getattr(sys.modules.get(module), cls, None)) is not None:
            teach(part, method, _refuse_kan)


def _refuse_kan(plain: Callable, part: Any, *args, **kwargs) -> Any:
    builds = plain.__name__ == '__init__'
    if builds:
        plain(part, *args, **kwargs)
    for layer in part.modules():
        if isinstance(layer, Folding):
            who = type(part).__name__ + ('' if builds else f'.{plain.__name__}')
            raise TypeError(f'{who} computes with the weight of each convolution itself, which in a '
                            f'{type(layer).__name__} is the base branch alone: the functions would be left out. Do '
                            'without it, or take ordinary convolutions there (conv_cfg=None)'
                            + OR_ELSE.get(type(part).__name__, ''))
    return None if builds else plain(part, *args, **kwargs)
