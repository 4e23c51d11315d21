"""Heads with KAN layers. Those of mmpretrain are subclasses of its own, so it is imported when one is built."""

from __future__ import annotations

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from rkan_mm.registry import MODELS


@MODELS.register_module('KANLinearClsHead')
@MMENGINE_MODELS.register_module('KANLinearClsHead')
def kan_linear_cls_head(num_classes: int, in_channels: int, fc_cfg: dict | None = None, **kwargs) -> nn.Module:
    """The ``LinearClsHead`` of mmpretrain with a KAN layer for its linear one, (B, in_channels) -> (B, num_classes).

    In mmdet no head of ours is needed: a box head takes ``cls_predictor_cfg=dict(type='KANLinear', ...)``.

    Args:
        num_classes, in_channels: as in ``LinearClsHead``.
        fc_cfg: arguments of :class:`KANLinear`, e.g. ``dict(basis=dict(type='GaussianRBF'))``.
        kwargs: further arguments of ``LinearClsHead``.
    """
    from mmpretrain.models.heads import LinearClsHead

    head = LinearClsHead(num_classes, in_channels, **kwargs)
    head.fc = MODELS.build(dict(type='KANLinear', in_features=in_channels, out_features=num_classes, **(fc_cfg or {})))
    return head
