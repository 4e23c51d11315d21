"""Whether weights are drawn for one layer, or for all of a model by mmengine."""

from __future__ import annotations

from torch import nn


def is_in_a_model(layer: nn.Module) -> bool:
    """Whether a ``BaseModule`` of mmengine is initialising what it holds, this layer too."""
    return hasattr(layer, '_params_init_info')
