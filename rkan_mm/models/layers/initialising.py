"""Whose word counts when mmengine initialises a model as a whole."""

from __future__ import annotations

from torch import nn

OWN = ('The value is the same before', 'Initialized by user-defined')
"""How mmengine's notes on parameters begin that no ``init_cfg`` has set."""


def is_set(layer: nn.Module) -> bool:
    """Whether the model around a layer has set one of its parameters, by an ``init_cfg`` or by code of its own.

    Always False but while a ``BaseModule`` of mmengine is initialising what it holds.
    """
    notes = getattr(layer, '_params_init_info', {})
    return any(not notes[p]['init_info'].startswith(OWN) or p.data.mean().cpu() != notes[p]['tmp_mean_value']
               for p in layer.parameters() if p in notes)
