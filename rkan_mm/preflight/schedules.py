"""Schedules of the lr that a training does not come to, does not get through, or gets through at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

DECAYS = ('Cosine', 'Poly', 'Exponential')
FEW = 3
"""Epochs from which on a decay within the first one is taken for a slip."""


def odd_schedules(runner: Runner) -> Iterator[str]:
    """What is odd about each schedule of a runner that is about to train by mmengine's own loops, in a sentence."""
    loop = runner.train_loop
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return
    given = runner.param_schedulers or []
    for name, schedules in given.items() if isinstance(given, dict) else [('', given)]:
        for i, schedule in enumerate(schedules):
            where = f'param_scheduler{f".{name}" if name else ""}[{i}] ({type(schedule).__name__})'
            if getattr(schedule, 'need_val_args', False):
                said = None if runner.val_loop else 'waits for a validation, and there is none: its lr stays as it is.'
            else:
                said = _odd(schedule, loop)
            if said:
                yield f'{where} {said}'


def _odd(schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> str | None:
    by_epoch, begin, end = schedule.by_epoch, schedule.begin, schedule.end
    epochs = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else 0
    if by_epoch and not epochs:
        return 'counts epochs, and this training counts iterations: its lr stays as it is. Write by_epoch=False.'
    total, unit = (epochs, 'epochs') if by_epoch else (loop.max_iters, 'iterations')
    if begin >= total:
        return f'begins after {begin} {unit}, and the training has {total}: it never does.'
    milestones = sorted(getattr(schedule, 'milestones', ()))
    if milestones and milestones[0] >= min(total, end):
        return f'has milestones={milestones}, and the training has {total} {unit}: its lr never falls.'
    if _rises(schedule) and end > total:
        return f'is a warm-up of {end - begin} {unit}, and the training has {total}: its lr is never reached.'
    first = 0 if by_epoch or epochs < FEW else loop.max_iters // epochs
    if first and milestones and milestones[-1] <= first:
        return (f'has milestones={milestones} in iterations (by_epoch=False), all within the first of {epochs} epochs: '
                'are epochs meant?')
    if begin == 0 and end <= first and type(schedule).__name__.startswith(DECAYS):
        return (f'ends after {end} iterations (by_epoch=False), within the first of {epochs} epochs: are epochs meant?')
    return None


def _rises(schedule: Any) -> bool:
    """Whether it is a warm-up: its lr comes at its end."""
    factors = [getattr(schedule, name, 1) for name in ('start_factor', 'factor')]
    return min(factors) < getattr(schedule, 'end_factor', 1) or type(schedule).__name__.startswith('QuadraticWarmup')
