"""What waits for a figure of the validation: the best checkpoint, early stopping, schedules, tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import Runner
from torch import Tensor

from rkan_mm.engine.run_error import PreflightError

from .config import dicts_with, is_mm, kind
from .red import warn_in_red

OF_LVIS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf', 'AR@300', 'ARs@300', 'ARm@300', 'ARl@300')


def check_monitors(runner: Runner, figures: dict[str, Any] | None) -> None:
    """Raise `PreflightError` if a hook, a schedule or a table waits for a figure that no metric gives, where known."""
    if any(not is_mm(type(hook), 'after_val_epoch') for hook in runner.hooks):
        return
    if type(runner.val_loop).__name__ == 'TeacherStudentValLoop' and is_mm(type(runner.val_loop)):
        _check_of_whom(_waiting(runner, {}))
    if figures is None:
        return
    numbers = [key for key, value in figures.items() if _is_number(value)]
    if figures and any('auto' in getattr(hook, 'key_indicators', ()) for hook in runner.hooks):
        _tell_best(figures, runner.val_loop.evaluator.dataset_meta)
    for who, keys in _waiting(runner, figures).items():
        if missing := [key for key in keys if key not in numbers]:
            given = f'{", ".join(sorted(numbers))}. Name one of these' if numbers else (
                'no number' if figures else 'no figure (format_only)')
            if (first := missing[0]) in figures:
                given += f' ({first} is a {type(figures[first]).__name__})'
            raise PreflightError(f'{who} waits for {", ".join(missing)}, and the validation gives {given}. To run all '
                                 'the same: --cfg-options preflight.trial=False')


def _waiting(runner: Runner, figures: dict[str, Any]) -> dict[str, list[str]]:
    """The figures that are waited for, by who does; 'auto' stands for the first."""
    waiting = {'wanted_metrics of the table': list(runner.cfg.get('wanted_metrics') or ())}
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            keys = getattr(hook, 'key_indicators', ())
            waiting[f'{type(hook).__name__}(save_best)'] = [key for key in ([*figures][:1] if 'auto' in keys else keys)
                                                            if key is not None]
        elif isinstance(hook, EarlyStoppingHook):
            waiting[f'{type(hook).__name__}(monitor)'] = [hook.monitor]
    for _, scheduler in dicts_with(runner.cfg.get('param_scheduler'), 'type'):
        if kind(scheduler).startswith('ReduceOnPlateau'):
            waiting['param_scheduler(monitor)'] = [scheduler.get('monitor', 'loss')]
    return waiting


def figures_by_settings(metric: Any) -> dict[str, float] | None:
    """The figures that a metric of mmdet gives, with values of no meaning; None where its settings do not tell."""
    name, keys = type(metric).__name__, None
    if name == 'CrowdHumanMetric':
        keys = [dict(AP='mAP', MR='mMR', JI='JI')[each] for each in metric.metrics]
    elif name == 'CityScapesMetric':
        keys = ['mAP', 'AP@50']
    elif name == 'OpenImagesMetric':
        keys = [*(f'AP{int(each * 100):02d}' for each in metric.iou_thrs), 'mAP']
    elif name == 'LVISMetric' and not metric.classwise and {*metric.metrics} <= {'bbox', 'segm'}:
        keys = [f'{each}_{item}' for each in metric.metrics for item in OF_LVIS
                if item in (metric.metric_items or OF_LVIS[:9])]
    if keys is None:
        return None
    return {f'{metric.prefix}/{key}' if metric.prefix else key: 0.0 for key in keys}


def _check_of_whom(waiting: dict[str, list[str]]) -> None:
    """A validation of a teacher and a student gives the figures of each under its name."""
    for who, keys in waiting.items():
        if odd := [key for key in keys if not key.startswith(('teacher/', 'student/'))]:
            raise PreflightError(f'{who} waits for {odd[0]}, and the validation gives the figures of two models: name '
                                 f'teacher/{odd[0]}, or student/{odd[0]}. To run all the same: --cfg-options '
                                 'preflight.trial=False')


def _is_number(value: Any) -> bool:
    """Whether mmengine can compare a figure: one number, and no list of classes and no matrix."""
    if isinstance(value, (np.ndarray, Tensor)):
        return math.prod(value.shape) == 1
    return isinstance(value, (int, float, np.number))


def is_of_one_class(figure: str, meta: dict | None) -> bool:
    """Whether a figure is of one class alone, as mmdet's metrics give them first with ``classwise=True``."""
    return figure.rpartition('/')[2] in {f'{name}_precision' for name in (meta or {}).get('classes') or ()}


def _tell_best(figures: dict[str, float], meta: dict | None) -> None:
    """Warn in red where the first figure, which ``save_best='auto'`` takes, is that of one class."""
    whole = [name for name in figures if not is_of_one_class(name, meta)]
    if whole and (first := next(iter(figures))) not in whole:
        warn_in_red(f"save_best='auto' keeps the weights that are best by the first figure of a validation, and with "
                    f'classwise=True that is {first}, of one class alone: --cfg-options '
                    f'default_hooks.checkpoint.save_best={whole[0]}')
