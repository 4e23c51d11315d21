"""The wrapper of a model that trains in several processes, made anew."""

from __future__ import annotations

import gc

from mmengine.runner import FlexibleRunner, Runner
from torch import nn


def wrap_again(runner: Runner | FlexibleRunner, model: nn.Module) -> nn.Module:
    """Give ``runner`` its model in a new wrapper, as it made the first: for who changed what a wrapper prepares by.

    The old wrapper is let go before, with what it had prepared.

    Args:
        model: what the wrapper of ``runner.model`` holds.

    Returns:
        The new ``runner.model``.
    """
    strategy = getattr(runner, 'strategy', None)  # of a FlexibleRunner, which takes its model from there
    runner.model = model
    if strategy is not None:
        strategy.model = model
    gc.collect()
    if strategy is None:
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
    else:
        runner.model = strategy.model = strategy._wrap_model(model)
    return runner.model
