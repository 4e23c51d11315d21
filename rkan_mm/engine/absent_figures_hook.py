"""A validation that lacks a figure: mmengine would log the one of the validation before in its place."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner

from rkan_mm.registry import HOOKS

VALIDATED_AFTER = 'epochs_validated'
"""What checkpoints keep of it under this name; mmengine would put one that begins with val into its log."""


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class AbsentFiguresHook(Hook):
    """Let figures that a validation lacks be nan there: in logs, in ``summary.json``, for schedules that wait for them.

    mmdet's CocoMetric gives no figures where a model finds nothing in any picture. mmengine's log then shows those of
    the validation before, and ReduceOnPlateau schedules stop the run with a KeyError. Where a loop of the user's own
    gives the figures of a validation in parts, as of several data sets in turn, none of them lacks those of the others.
    """

    priority = 'ABOVE_NORMAL'  # behind mmengine's RuntimeInfoHook, before what logs and what waits for figures

    def before_run(self, runner: Runner) -> None:
        self.taking_back = _TakingBackHook()
        self._last: tuple[int, int] | None = None
        runner.register_hook(self.taking_back)

    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        for old, new in (('validated_after', VALIDATED_AFTER), ('validated_in_parts', 'in_parts_validated')):
            if old in info:  # of an older checkpoint
                info[new] = info.pop(old)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if metrics is None:
            return
        hub = runner.message_hub
        again, self._last = self._last == (runner.epoch, runner.iter), (runner.epoch, runner.iter)
        if again:
            hub.update_info('in_parts_validated', True)
        given = list(metrics)
        known = [] if hub.get_info('in_parts_validated', False) else hub.get_info('known_figures', [])
        self.taking_back.names = [name for name in _waited_for(runner.param_schedulers) if name not in metrics]
        metrics.update(dict.fromkeys(self.taking_back.names, nan))
        if missing := [name for name in dict.fromkeys([*known, *metrics]) if name not in given]:
            runner.logger.warning(f'This validation gave no {", ".join(missing)}, as where nothing is found in any '
                                  'picture; in logs and summary.json it is nan.')
        for name in missing:
            hub.update_scalar(f'val/{name}', nan)
        scalars = [name for name in given if f'val/{name}' in hub.log_scalars]
        hub.update_info('known_figures', list(dict.fromkeys([*known, *scalars])))
        if not again:
            hub.update_info('count_of_validations', hub.get_info('count_of_validations', 0) + 1)
            hub.update_info(VALIDATED_AFTER, [*hub.get_info(VALIDATED_AFTER, []), runner.epoch or runner.iter])


class _TakingBackHook(Hook):
    """Take nan back once schedules have had it: save_best and early stopping know themselves what is missing."""

    priority = 75  # behind mmengine's ParamSchedulerHook, before its CheckpointHook
    names: Sequence[str] = ()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        for name in self.names:
            (metrics or {}).pop(name, None)


def _waited_for(schedules: Any) -> list[str]:
    """Figures that schedules, which may be those of several optimizers, wait for."""
    if isinstance(schedules, dict):
        return [name for each in schedules.values() for name in _waited_for(each)]
    return [each.monitor for each in schedules or () if getattr(each, 'need_val_args', False)]
