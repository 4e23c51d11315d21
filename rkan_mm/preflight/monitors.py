"""What waits for a figure of the validation: the best checkpoint, early stopping, schedules, tables."""

from __future__ import annotations

from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import Runner

from rkan_mm.engine.run_error import PreflightError

from .config import dicts_with, is_mm, kind
from .red import warn_in_red


def check_monitors(runner: Runner, figures: dict[str, float] | None) -> None:
    """Raise `PreflightError` if a hook, a schedule or a table waits for a figure that no metric gives, where known."""
    if figures is None or any(not is_mm(type(hook), 'after_val_epoch') for hook in runner.hooks):
        return
    waiting = {'wanted_metrics of the table': list(runner.cfg.get('wanted_metrics') or ())}
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            if 'auto' in getattr(hook, 'key_indicators', ()):
                _tell_best(figures, runner.val_loop.evaluator.dataset_meta)
            waiting[f'{type(hook).__name__}(save_best)'] = [key for key in getattr(hook, 'key_indicators', ())
                                                            if key not in ('auto', None)]
        elif isinstance(hook, EarlyStoppingHook):
            waiting[f'{type(hook).__name__}(monitor)'] = [hook.monitor]
    for _, scheduler in dicts_with(runner.cfg.get('param_scheduler'), 'type'):
        if kind(scheduler).startswith('ReduceOnPlateau'):
            waiting['param_scheduler(monitor)'] = [scheduler.get('monitor', 'loss')]
    for who, keys in waiting.items():
        if missing := [key for key in keys if key not in figures]:
            given = f'{", ".join(sorted(figures))}. Name one of these' if figures else 'no figure (format_only)'
            raise PreflightError(f'{who} waits for {", ".join(missing)}, and the validation gives {given}. To run all '
                                 'the same: --cfg-options preflight.trial=False')


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
