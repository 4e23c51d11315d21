"""What a training run came to, in one small file."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from math import isnan, nan
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import BaseLoop, Runner
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from rkan_mm.registry import HOOKS

from .absent_figures_hook import VALIDATED_AFTER
from .provenance import commit, fingerprint, processor
from .resume_state import batches_in
from .writing import plain

PEAKS = 'peak_memory_mib'
"""What checkpoints keep of it under this name."""


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class RunSummaryHook(Hook):
    """Write ``summary.json`` to the work dir when training is over.

    It holds every metric of every validation, nan where one lacked it, with the last and the best value (the highest,
    unless a hook of the config knows it better; of losses, distances and ``mMR`` the lowest) and the epoch of the best
    one (None where iterations are counted); the epochs, or iterations, after which were validations; the median seconds
    of a training epoch without validation, the peak memory in MiB (of the GPU, else resident), parameters, seed and
    versions; metrics of a test that follows are added. The best value of a metric was chosen by the data it is measured
    on, the last one was not.

    It also holds the fingerprint of the data of each split, the commit of the code, the devices that trained and their
    numbers of threads; of a run that was resumed, all that it had, the largest peak memory of its starts on the last
    device (of the first rank), and seconds of its last start, if that had a whole epoch. Where the config says for
    which data it was made (``data_fingerprints``, by split), a run on other data is warned of when it starts, and
    ``other_data`` names the splits.
    """

    priority = 'NORMAL'  # the logger, whose priority is lower, begins the count of the GPU's peak anew
    _trained = False  # a hook before this one may save a checkpoint when the training begins
    _times_before = 0
    _seen = 0.0

    def before_train(self, runner: Runner) -> None:
        sharded = isinstance(runner.model, FullyShardedDataParallel)
        whole = FullyShardedDataParallel.summon_full_params(runner.model, writeback=False) if sharded else nullcontext()
        with whole:
            self._parameters = sum(p.numel() for p in runner.model.parameters())
        self._trained, self._seen = False, 0.0
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        times = runner.message_hub.log_scalars.get('train/time')
        self._times_before = 0 if times is None else len(times.data[0])
        self._note_provenance(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self._trained:
            self._remember(runner, 'device', f'{get_world_size()} x {_device()}')
            self._remember(runner, 'threads', str(torch.get_num_threads()))
        self._trained = True

    def _after_iter(self, *args, **kwargs) -> None:
        if torch.cuda.is_initialized():
            self._seen = self._memory()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The peak of this process, for who goes on with another."""
        if 'message_hub' in checkpoint:
            checkpoint['message_hub']['runtime_info'][PEAKS] = self._peaks(runner)

    def _peaks(self, runner: Runner) -> dict[str, float]:
        """Of memory by device, the largest of the starts of this training."""
        peaks = dict(runner.message_hub.get_info(PEAKS, {}))
        return peaks | ({_device(): max(self._memory(), peaks.get(_device(), 0))} if self._trained else {})

    def _peak(self, runner: Runner) -> float:
        """Of the device that the training ended on; that of this process where nothing else is known."""
        last = runner.message_hub.get_info('provenance_device', [''])[-1].partition(' x ')[2]
        return self._peaks(runner).get(last, self._memory())

    @master_only
    def _note_provenance(self, runner: Runner) -> None:
        self._remember(runner, 'commit', commit())
        for split, loop in dict(train=runner.train_loop, val=runner.val_loop).items():
            self._check_data(runner, split, loop)

    def _check_data(self, runner: Runner, split: str, loop: BaseLoop | None) -> None:
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)  # loops of others may have several
        if dataset is None:
            return
        try:
            data = fingerprint(dataset)
        except Exception as error:  # a data set of the user's own may be unlike mm's in any way
            runner.logger.warning(f'{type(dataset).__name__} of the {split} has no fingerprint: '
                                  f'{type(error).__name__}: {error}')
            return
        before = self._remember(runner, f'data_{split}', data)
        if before and before[-1] != data:
            runner.logger.warning(f'The {split} data changed since this run began: fingerprint {data}, it was '
                                  f'{before[-1]}')
        expected = (runner.cfg.get('data_fingerprints') or {}).get(split)
        if expected and data != expected:
            hint = runner.cfg.get('data_hint')
            runner.logger.warning(
                f'The {split} data is not what this config was made for: fingerprint {data}, expected {expected}. Its '
                f'results do not compare with recorded ones.{f" {hint}" if hint else ""}')

    @staticmethod
    def _remember(runner: Runner, name: str, value: str | None) -> list[str]:
        """Append to what checkpoints keep of the run, unless it is the newest already; what was there before."""
        before = runner.message_hub.get_info(f'provenance_{name}', [])
        if value and value not in before[-1:]:
            runner.message_hub.update_info(f'provenance_{name}', [*before, value])
        return before

    @staticmethod
    def _provenance(runner: Runner) -> dict:
        def known(name: str) -> list[str]:
            return runner.message_hub.get_info(f'provenance_{name}', [])

        data = {split: known(f'data_{split}') for split in ('train', 'val', 'test') if known(f'data_{split}')}
        expected = runner.cfg.get('data_fingerprints') or {}
        other = [split for split in data if split in expected and data[split] != [expected[split]]]
        return dict(commits=known('commit'), devices=known('device'), all_threads=known('threads'), data=data,
                    other_data=other)

    @master_only
    def after_train(self, runner: Runner) -> None:
        history = runner.message_hub.log_scalars
        metrics, after = {}, runner.message_hub.get_info(VALIDATED_AFTER, [])
        for name, buffer in history.items():
            if name.startswith('val/') and name not in ('val/time', 'val/data_time'):
                curve = buffer.data[0].tolist()
                curve = [nan] * (runner.message_hub.get_info('count_of_validations', 0) - len(curve)) + curve
                numbers = [value for value in curve if not isnan(value)] or curve
                name = name.removeprefix('val/')
                best = min(numbers) if _is_better_low(name, runner.hooks) else max(numbers)
                behind = curve.index(best) - len(curve)  # of a resumed run the last ones may be known alone
                metrics[name] = dict(
                    last=curve[-1], best=best, curve=curve,
                    best_epoch=after[behind] if runner.epoch and -behind <= len(after) else None)
        summary = dict(
            experiment=runner.experiment_name,
            seed=runner.seed,
            parameters=self._parameters,
            epochs=runner.epoch,
            iterations=runner.iter,
            metrics=metrics,
            validated_after=after,
            seconds_per_epoch=self._seconds(history, runner),
            peak_memory_mib=self._peak(runner),
            device=_device(),
            threads=torch.get_num_threads(),
            **self._provenance(runner),
            processes=get_world_size(),
            versions=dict(python=platform.python_version(), torch=torch.__version__, mmengine=mmengine.__version__))
        self._path(runner).write_text(json.dumps(summary, indent=1))
        for name, metric in metrics.items():
            runner.logger.info(f'{name}: last {metric["last"]:.4f}, best {metric["best"]:.4f} (validation '
                               f'{metric["curve"].index(metric["best"]) + 1} of {len(metric["curve"])})')

    @master_only
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if hasattr(self, '_parameters') and self._path(runner).exists():  # runner.iter would build the training's data
            summary = json.loads(self._path(runner).read_text())
            self._check_data(runner, 'test', runner.test_loop)
            summary = {**summary, **self._provenance(runner), 'test': plain(metrics)}
            self._path(runner).write_text(json.dumps(summary, indent=1))

    @staticmethod
    def _path(runner: Runner) -> Path:
        return Path(runner.work_dir, 'summary.json')

    def _seconds(self, history: dict, runner: Runner) -> float | None:
        """Of whole epochs of this start, if it had one: before it batches may have been others, and the machine."""
        loader = getattr(runner.train_loop, 'dataloader', None)
        batches = batches_in(loader) if isinstance(loader, DataLoader) else None
        if 'train/time' not in history or not runner.epoch or not batches:
            return None
        times = history['train/time'].data[0]
        mine = times[self._times_before:]
        times = mine if len(mine) >= batches else times
        epochs = len(times) // batches
        return float(np.median(times[-epochs * batches:].reshape(epochs, -1).sum(1))) if epochs else None

    def _memory(self) -> float:
        if torch.cuda.is_available():
            return max(self._seen, torch.cuda.max_memory_allocated() / 2**20)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == 'darwin' else peak / 2**10


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def _is_better_low(name: str, hooks: Iterable[Hook]) -> bool:
    """As the hooks have it that keep or wait for the best; else by its name."""
    for hook in hooks:
        rules = (dict(zip(hook.key_indicators, hook.rules, strict=False))
                 if isinstance(hook, CheckpointHook) and hook.save_best else
                 {hook.monitor: hook.rule} if isinstance(hook, EarlyStoppingHook) else {})
        if rules.get(name):
            return rules[name] == 'less'
    return 'loss' in name or name.endswith(('mMR', '_distance'))
