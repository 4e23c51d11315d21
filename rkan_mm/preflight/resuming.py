"""What of a checkpoint a training goes on with: what must be there, and what of the config then changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from rkan_mm.engine.run_error import PreflightError

from .config import kind
from .red import warn_in_red

COMPARED = ('lr', 'weight_decay', 'momentum', 'betas', 'eps', 'alpha', 'rho')
"""Settings of optimizers that come from the checkpoint when a training is resumed."""


SCHEDULED = ('begin', 'end', 'by_epoch', 'milestones', 'gamma', 'factor', 'step_size', 'start_factor', 'end_factor',
             'eta_min', 'eta_min_ratio', 'eta_max', 'power', 'T_max', 'total_steps', 'periods', 'restart_weights')
"""Settings of schedules that come from the checkpoint, too."""


def check_resumable(content: Any, path: str, cfg: Config) -> None:
    """Raise `PreflightError` if mmengine cannot go on from what a checkpoint holds.

    Its Runner does without an optimizer and schedules, which then begin anew; its FlexibleRunner does not.
    """
    needed = ['meta', 'message_hub']
    if kind(dict(type=cfg.get('runner_type'))) == 'FlexibleRunner':
        needed += ['optimizer', *(['param_schedulers'] if cfg.get('param_scheduler') else [])]
    content = content if isinstance(content, dict) else {}
    missing = [name for name in needed if name not in content] or sorted({'epoch', 'iter'} - set(content['meta'] or ()))
    if missing:
        what = ('no whole state of a training' if 'message_hub' in content else
                'weights alone, no state of a training')
        raise PreflightError(f'--resume: {path!r} holds {what} ({", ".join(missing)} is missing). To begin a training '
                             f'with these weights: --cfg-options load_from={path}')


def check_resumed(runner: Runner, checkpoint: dict, path: str) -> None:
    """Compare the optimizer and the schedules of a checkpoint, which will be gone on with, with those of the config.

    Raises:
        PreflightError: the optimizer is of another kind; torch would fail at the first step.
    """
    for line in (*_anew(runner, checkpoint), *_other_schedules(runner, checkpoint)):
        warn_in_red(f'--resume: {line}')
    wrapper, saved = runner.optim_wrapper, (checkpoint.get('optimizer') or {}).get('param_groups')
    if not isinstance(wrapper, OptimWrapper) or not saved:
        return
    name = type(wrapper.optimizer).__name__
    if missing := [key for key in COMPARED if key in wrapper.optimizer.param_groups[0] and key not in saved[0]]:
        raise PreflightError(f'--resume: the optimizer of {path!r} is another than {name}: it has no '
                             f'{", ".join(missing)}. Resume with the optimizer that it was trained with, or begin a '
                             f'training with its weights: --cfg-options load_from={path}')
    for key in COMPARED:
        old, new = ([group.get(f'initial_{key}', group.get(key)) for group in groups] for groups in (
            saved, wrapper.optimizer.param_groups))
        if len(old) == len(new) and (differ := [pair for pair in zip(old, new, strict=True)
                                                if not _same(*pair)]):
            warn_in_red(f'--resume goes on with the {key} of the checkpoint, {differ[0][0]}; that of the config, '
                        f'{differ[0][1]}, changes nothing.')


def _anew(runner: Runner, checkpoint: dict) -> Iterator[str]:
    if 'optimizer' not in checkpoint:
        yield 'the checkpoint has no state of an optimizer, which begins anew: with the lr of the config, no momentum.'
    if 'param_schedulers' not in checkpoint and runner.param_schedulers:
        yield 'the checkpoint has no state of the param_scheduler, which begins anew: with its first epoch, or warm-up.'


def _other_schedules(runner: Runner, checkpoint: dict) -> Iterator[str]:
    mine, saved = runner.param_schedulers, checkpoint.get('param_schedulers')
    if not isinstance(mine, list) or not isinstance(saved, list):
        return  # none, or those of several optimizers
    if len(mine) != len(saved):
        yield (f'the config has {len(mine)} schedules in param_scheduler, the checkpoint {len(saved)}; they are taken '
               'for each other in their order.')
    for i, (schedule, old) in enumerate(zip(mine, saved, strict=False)):
        new = getattr(schedule, 'state_dict', dict)()
        differ = [key for key in SCHEDULED if key in new and key in old and not _same(old[key], new[key])
                  and (key != 'end' or max(new.get('milestones') or [math.inf]) >= old[key])]
        if differ:
            yield (f'param_scheduler[{i}] ({type(schedule).__name__}) goes on with '
                   + ', '.join(f'{key}={_short(old[key])}' for key in differ) + ' of the checkpoint; '
                   + ', '.join(_short(new[key]) for key in differ) + ' of the config changes nothing.')


def _short(value: Any) -> str:
    return str(sorted(value) if isinstance(value, dict) else value)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)):
        return len(old) == len(new) and all(map(_same, old, new))
    numbers = (int, float, Tensor)
    if isinstance(old, numbers) and isinstance(new, numbers):
        return math.isclose(float(old), float(new), rel_tol=1e-6)
    return old == new or None in (old, new)
