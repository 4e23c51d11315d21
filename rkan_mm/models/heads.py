"""Heads with KAN layers. Those of mmpretrain are subclasses of its own, so it is imported when one is built."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mmengine.model import Sequential
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from rkan_mm.registry import MODELS


@MODELS.register_module('KANLinearClsHead')
@MMENGINE_MODELS.register_module('KANLinearClsHead')
def kan_linear_cls_head(num_classes: int, in_channels: int, fc_cfg: dict | None = None,
                        mid_channels: Sequence[int] = (), **kwargs) -> nn.Module:
    """The ``LinearClsHead`` of mmpretrain with KAN layers for its linear one, (B, in_channels) -> (B, num_classes).

    In mmdet no head of ours is needed: a box head takes ``cls_predictor_cfg=dict(type='KANLinear', ...)``.

    Args:
        num_classes, in_channels: as in ``LinearClsHead``.
        fc_cfg: arguments of each :class:`KANLinear`, e.g. ``dict(basis=dict(type='GaussianRBF'))``.
        mid_channels: outputs of the layers before the last; nothing stands between them.
        kwargs: further arguments of ``LinearClsHead``.
    """
    from mmpretrain.models.heads import LinearClsHead

    head = LinearClsHead(num_classes, in_channels, **kwargs)
    layers = [MODELS.build(dict(type='KANLinear', in_features=inputs, out_features=outputs, **(fc_cfg or {})))
              for inputs, outputs in pairwise((in_channels, *mid_channels, num_classes))]
    head.fc = Sequential(*layers) if mid_channels else layers[0]
    return head
