"""Schedules and averages that are made for a training of another length: not come to, not got through, or at once."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from .red import warn_in_red

DECAYS = ('Cosine', 'Poly', 'Exponential')
FEW = 3
"""Epochs below which a training is taken for a trial, whose schedules nobody rewrites."""

TRIAL = 1000
"""The same in iterations, for a training that counts no epochs."""


def tell_schedules(runner: Runner) -> None:
    """Warn in red of the schedules of a runner, about to train by mmengine's own loops, that do not suit the training.

    That they are made for a longer one is a line in the log where the training is a trial.
    """
    loop = runner.train_loop
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return
    beyond, given = [], runner.param_schedulers or []
    for name, schedules in given.items() if isinstance(given, dict) else [('', given)]:
        for i, schedule in enumerate(schedules):
            who = type(schedule).__name__
            where = f'param_scheduler{f".{name}" if name else ""}[{i}] ({who})'
            if getattr(schedule, 'need_val_args', False):
                if not runner.val_loop:
                    warn_in_red(f'{where} waits for a validation, and there is none: its lr stays as it is.')
            elif odd := _counted_otherwise(schedule, loop):
                warn_in_red(f'{where} {odd}')
            elif odd := _beyond(schedule, loop):
                beyond.append(f'{name} {who} {odd}'.lstrip())
    if not beyond:
        return
    epochs, steps = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else 0, _count(loop.max_iters, 'iteration')
    length = f'{_count(epochs, "epoch")} ({steps})' if epochs else steps
    _tell(loop, f'param_scheduler is made for a longer training than this one of {length}: {", ".join(beyond)}.')


def tell_averages(runner: Runner) -> None:
    """Say so where the weights that an EMAHook validates and saves stay close to those before the training."""
    loop = runner.train_loop
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return
    for hook in runner.hooks:
        average: Any = getattr(hook, 'ema_model', None)
        if not isinstance(hook, EMAHook) or type(average) is not ExponentialMovingAverage or hook.begin_epoch:
            continue
        steps = (loop.max_iters - hook.begin_iter) // average.interval
        share = (1 - average.momentum) ** steps
        if not hook.begin_iter and share > 0.5:
            _tell(loop, f'EMAHook validates and saves averages, of which {share:.1%} are still the weights from before '
                  f'the training (momentum={average.momentum}, {_count(steps, "update")}): a larger momentum, or '
                  "ema_type='ExpMomentumEMA', forgets them.")


def _tell(loop: EpochBasedTrainLoop | IterBasedTrainLoop, text: str) -> None:
    """In red, or, where the training is a trial, as a line in the log."""
    if loop.max_epochs < FEW if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters < TRIAL:
        MMLogger.get_current_instance().info(text)
    else:
        warn_in_red(text)


def _counted_otherwise(schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> str | None:
    """Epochs where the training counts iterations, or iterations that look like epochs."""
    epochs = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else 0
    if schedule.by_epoch:
        return None if epochs else ('counts epochs, and this training counts iterations: its lr stays as it is. Write '
                                    'by_epoch=False.')
    milestones, first = getattr(schedule, 'milestones', ()), 0 if epochs < FEW else loop.max_iters // epochs
    if first and milestones and max(milestones) <= first:
        return (f'has milestones={sorted(milestones)} in iterations (by_epoch=False), all within the first of {epochs} '
                'epochs: are epochs meant?')
    if schedule.begin == 0 and schedule.end <= first and type(schedule).__name__.startswith(DECAYS):
        return (f'ends after {schedule.end} iterations (by_epoch=False), within the first of {epochs} epochs: are '
                'epochs meant?')
    return None


def _beyond(schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> str | None:
    """What of a schedule lies behind the end of a training."""
    begin, end = schedule.begin, schedule.end
    total, unit = (loop.max_epochs, 'epoch') if schedule.by_epoch else (loop.max_iters, 'iteration')
    if begin >= total:
        return f'begins after {_count(begin, unit)}'
    milestones = getattr(schedule, 'milestones', ())
    if milestones and min(milestones) >= min(total, end):
        return f'first steps after {_count(min(milestones), unit)}'
    if _rises(schedule) and end > total:
        return f'warms up for {_count(end - begin, unit)}'
    return None


def _count(number: int, unit: str) -> str:
    return f'{number} {unit}{"s" if number != 1 else ""}'


def _rises(schedule: Any) -> bool:
    """Whether it is a warm-up: its lr comes at its end."""
    factors = [getattr(schedule, name, 1) for name in ('start_factor', 'factor')]
    return min(factors) < getattr(schedule, 'end_factor', 1) or type(schedule).__name__.startswith('QuadraticWarmup')
