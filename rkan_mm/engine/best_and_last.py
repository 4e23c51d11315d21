"""Best and last value of a metric: papers report the one, careful readers want the other."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner

from rkan_mm.registry import HOOKS


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class BestAndLastHook(Hook):
    """At the end of training, log a metric of the best and of the last validation, and add both to the scalars.

    They are the scalars ``best/<metric>`` and ``last/<metric>``. A resumed run remembers the best before it.

    Args:
        metric: name of the metric, of which more is better.

    Raises:
        KeyError: after a validation without such a metric; the message lists what there is.
    """

    def __init__(self, metric: str = 'accuracy/top1') -> None:
        self.metric = metric
        self._key = f'best and last {metric}'

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self.metric not in (metrics or {}):
            raise KeyError(f'BestAndLastHook: no metric {self.metric!r}; there are {", ".join(metrics or {})}')
        last = dict(value=float(metrics[self.metric]), epoch=runner.epoch)
        best = self._memory(runner).get('best', last)
        runner.message_hub.update_info(
            self._key, dict(best=last if last['value'] > best['value'] else best, last=last))

    def after_train(self, runner: Runner) -> None:
        memory = self._memory(runner)
        if not memory:  # no validation
            return
        runner.logger.info(f'{self.metric}: ' + ', '.join(
            f'{which} {result["value"]:.4f} (epoch {result["epoch"]})' for which, result in memory.items()))
        runner.visualizer.add_scalars(
            {f'{which}/{self.metric}': result['value'] for which, result in memory.items()}, step=runner.epoch)

    def _memory(self, runner: Runner) -> dict[str, dict]:
        return runner.message_hub.runtime_info.get(self._key, {})
