"""The activation of the base branch."""

from __future__ import annotations

from mmcv.cnn import build_activation_layer
from torch import nn


def build_base_act(cfg: dict | None) -> nn.Module | None:
    """By a config for mmcv; never in place, since the functions see the same input."""
    act = None if cfg is None else build_activation_layer(cfg)
    if act is not None and getattr(act, 'inplace', False):
        act.inplace = False
    return act
