"""The wrapper of a model that trains in several processes, made anew."""

from __future__ import annotations

import gc

from mmengine.model import is_model_wrapper
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

STEPS = ('train_step', 'val_step', 'test_step', 'forward')
"""Of a model, that mmengine compiles."""


def wrap_again(runner: Runner | FlexibleRunner, model: nn.Module) -> nn.Module:
    """Give ``runner`` its model in a new wrapper, as it made the first: for who changed what a wrapper prepares by.

    The old wrapper is let go before, with what it had prepared; what was compiled of it is compiled of the new one.

    Args:
        model: what the wrapper of ``runner.model`` holds.

    Returns:
        The new ``runner.model``.
    """
    compiled = [name for name in STEPS if name in vars(runner.model)]
    for name in [name for name, child in model.named_children() if is_model_wrapper(child)]:
        setattr(model, name, getattr(model, name).module)  # of an MMSeparateDistributedDataParallel
    strategy = getattr(runner, 'strategy', None)  # of a FlexibleRunner, which takes its model from there
    runner.model = model
    if strategy is not None:
        strategy.model = model
    gc.collect()
    if strategy is None:
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
    else:
        runner.model = strategy.model = strategy._wrap_model(model)
    for name in compiled:
        if strategy is None:
            runner._maybe_compile(name)
        else:
            options = runner._compile if isinstance(runner._compile, dict) else {}
            strategy.compile_model(runner.model, {**options, 'target': name} if runner._compile else False)
    return runner.model
