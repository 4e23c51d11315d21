"""Schedules and averages that are made for a training of another length: not come to, not got through, or at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from rkan_mm.engine.run_error import PreflightError

from .red import warn_in_red

DECAYS = ('Cosine', 'Poly', 'Exponential')
FEW = 3
"""Epochs below which a training is taken for a trial, whose schedules nobody rewrites."""

TRIAL = 1000
"""The same in iterations, for a training that counts no epochs."""

SHARE = 0.1
"""Part of a training that a schedule may be too short by: some of mm's own end with a few epochs at a low lr."""

LONGER = 1.25
"""How many times longer than a training a decay may be: one of mm's own is, a little."""

LOW = 0.05
"""Part of an lr below which hardly anything is learned; mm's own configs go on with this much at the end."""


def schedules_of(runner: Runner) -> Iterator[tuple[str, str, Any]]:
    """Each schedule of a runner, behind the name of its optimizer ('' for the only one) and its place in the config."""
    given = runner.param_schedulers or []
    for name, schedules in given.items() if isinstance(given, dict) else [('', given)]:
        for i, schedule in enumerate(schedules):
            yield name, f'param_scheduler{f".{name}" if name else ""}[{i}] ({type(schedule).__name__})', schedule


def check_schedules(runner: Runner) -> None:
    """Warn in red of the schedules of a runner, about to train by mmengine's own loops, that do not suit the training.

    That they are made for a longer or shorter one is a line in the log where the training is a trial.

    Raises:
        PreflightError: a schedule would stop the training.
    """
    loop = runner.train_loop
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return
    longer, shorter, schedules = [], [], list(schedules_of(runner))
    for name, where, schedule in schedules:
        who = f'{name} {type(schedule).__name__}'.lstrip()
        if getattr(schedule, 'need_val_args', False):
            if not runner.val_loop:
                warn_in_red(f'{where} waits for a validation, and there is none: its lr stays as it is.')
            continue
        _check_steps(where, schedule, loop)
        if odd := _counted_otherwise(schedule, loop):
            warn_in_red(f'{where} {odd}')
        elif odd := _beyond(schedule, loop):
            longer.append(f'{who} {odd}')
        elif odd := _over_early(schedule, loop, [other for its, _, other in schedules if its == name]):
            shorter.append(f'{who} {odd}')
    epochs, steps = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else 0, _count(loop.max_iters, 'iteration')
    length = f'{_count(epochs, "epoch")} ({steps})' if epochs else steps
    for which, found in dict(longer=longer, shorter=shorter).items():
        if found:
            tell(loop, f'param_scheduler is made for a {which} training than this one of {length}: {", ".join(found)}.')


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
            tell(loop, f'EMAHook validates and saves averages, of which {share:.1%} are still the weights from before '
                  f'the training (momentum={average.momentum}, {_count(steps, "update")}): a larger momentum, or '
                  "ema_type='ExpMomentumEMA', forgets them.")


def tell(loop: EpochBasedTrainLoop | IterBasedTrainLoop, text: str) -> None:
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


def _total(schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> tuple[int, str]:
    """The length of a training as a schedule counts it, with the unit."""
    return (loop.max_epochs, 'epoch') if schedule.by_epoch else (loop.max_iters, 'iteration')


def _beyond(schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> str | None:
    """What of a schedule lies behind the end of a training."""
    begin, end = schedule.begin, schedule.end
    total, unit = _total(schedule, loop)
    if begin >= total:
        return f'begins after {_count(begin, unit)}'
    milestones = getattr(schedule, 'milestones', ())
    if milestones and min(milestones) >= min(total, end):
        return f'first steps after {_count(min(milestones), unit)}'
    if _rises(schedule) and end > total:
        return f'warms up for {_count(end - begin, unit)}'
    if (length := _length(schedule)) > LONGER * (total - begin):
        return f'takes {_count(length, unit)}'
    return None


def _over_early(schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop, others: list[Any]) -> str | None:
    """Whether a decay is through long before a training: its lr then rises again, or is next to nothing."""
    total, unit = _total(schedule, loop)
    end, length = min(schedule.end, total), _length(schedule)
    over = schedule.begin + length
    if not length or schedule.param_name != 'lr' or total - over <= SHARE * total:
        return None
    if type(schedule).__name__.startswith('CosineAnnealing') and end > over:
        return f'rises again after {_count(over, unit)} (T_max)'
    followed = any(other is not schedule and other.param_name == 'lr' and other.end > over for other in others)
    return None if followed or _last_part(schedule, length) >= LOW else (
        f'leaves less than {LOW:.0%} of the lr after {_count(over, unit)}')


def _check_steps(where: str, schedule: Any, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> None:
    """Mmengine stops at the step behind the last of OneCycleLR."""
    if not type(schedule).__name__.startswith('OneCycle'):
        return
    total, unit = _total(schedule, loop)
    if min(total, schedule.end - 1) - schedule.begin > schedule.total_steps:
        steps = min(total, schedule.end) - schedule.begin
        raise PreflightError(f'{where} has total_steps={schedule.total_steps}, and the training takes '
                             f'{_count(steps, unit)}: mmengine would stop with an error behind those of the schedule. '
                             'Leave total_steps out, or give as many.')


def _length(schedule: Any) -> int:
    """The steps that a decay takes; 0 of what is none."""
    periods = getattr(schedule, 'cumulative_periods', None)
    if type(schedule).__name__.startswith('Poly'):
        return schedule.end - schedule.begin
    return periods[-1] if periods else next((steps for name in ('T_max', 'total_steps')
                                             if (steps := getattr(schedule, name, 0))), 0)


def _last_part(schedule: Any, length: int) -> float:
    """What a cosine, a polynomial or a cycle leaves of an lr when it is through."""
    base = schedule.base_values[0] or 1
    least = (getattr(schedule, 'eta_min', None) or 0) / base if getattr(schedule, 'eta_min_ratio', None) is None else (
        schedule.eta_min_ratio)
    steps = getattr(schedule, 'periods', [length])[-1]  # mmengine comes to the last but one of a cosine
    cosine = type(schedule).__name__.startswith('Cosine')
    rest = (1 + math.cos(math.pi * (steps - 1) / steps)) / 2 if cosine else 0
    return least + (1 - least) * rest


def _count(number: int, unit: str) -> str:
    return f'{number} {unit}{"s" if number != 1 else ""}'


def _rises(schedule: Any) -> bool:
    """Whether it is a warm-up: its lr comes at its end."""
    factors = [getattr(schedule, name, 1) for name in ('start_factor', 'factor')]
    return min(factors) < getattr(schedule, 'end_factor', 1) or type(schedule).__name__.startswith('QuadraticWarmup')
