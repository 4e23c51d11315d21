"""The optimizer of a checkpoint beside that of the config by which a training goes on."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from rkan_mm.engine.run_error import PreflightError

from .red import warn_in_red

COMPARED = ('lr', 'weight_decay', 'momentum', 'betas', 'eps', 'alpha', 'rho')
"""Settings of optimizers that come from the checkpoint when a training is resumed."""


def check_resumed(runner: Runner, checkpoint: dict, path: str) -> None:
    """Compare the optimizer of a checkpoint, which will be gone on with, with that of the config.

    Raises:
        PreflightError: it is of another kind; torch would fail at the first step.
    """
    wrapper, saved = runner.optim_wrapper, (checkpoint.get('optimizer') or {}).get('param_groups')
    if not isinstance(wrapper, OptimWrapper) or not saved:
        return
    name = type(wrapper.optimizer).__name__
    if missing := [key for key in COMPARED if key in wrapper.param_groups[0] and key not in saved[0]]:
        raise PreflightError(f'--resume: the optimizer of {path!r} is another than {name}: it has no '
                             f'{", ".join(missing)}. Resume with the optimizer that it was trained with, or begin a '
                             f'training with its weights: --cfg-options load_from={path}')
    for key in COMPARED:
        old, new = ([group.get(f'initial_{key}', group.get(key)) for group in groups] for groups in (
            saved, wrapper.param_groups))
        if len(old) == len(new) and (differ := [pair for pair in zip(old, new, strict=True)
                                                if not _same(*pair)]):
            warn_in_red(f'--resume goes on with the {key} of the checkpoint, {differ[0][0]}; that of the config, '
                        f'{differ[0][1]}, changes nothing.')


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)):
        return len(old) == len(new) and all(map(_same, old, new))
    numbers = (int, float, Tensor)
    if isinstance(old, numbers) and isinstance(new, numbers):
        return math.isclose(float(old), float(new), rel_tol=1e-6)
    return old == new or None in (old, new)
