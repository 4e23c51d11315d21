"""Checkpoints that are whole at every moment and hold all that an exact resume needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import nan
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner

from rkan_mm.registry import HOOKS

from . import resume_state
from .atomic_backend import SUFFIX, AtomicBackend
from .run_error import RunError


class _RemovingLater:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend) -> None:
        self.backend, self.removals = backend, []

    def __getattr__(self, name: str):
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.removals.append((self.backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removals.append((self.backend.rmtree, path))


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with its arguments, made to survive a stop at any moment.

    On a local disk every file appears whole or not at all. Old checkpoints are removed once the new one is on the disk,
    so there is room for one more than ``max_keep_ckpts``. The checkpoint before a validation is saved again after it,
    with what came out. With ``save_last`` the last weights are also those of a training that is stopped early.

    Raises:
        RunError: a checkpoint cannot be written, e.g. on a full disk; the one before is still there.
    """

    _batches_done = 0
    _unvalidated = None  # step and meta of the last checkpoint, until a validation has followed
    _saved = 0  # iterations done by the last checkpoint

    def before_train(self, runner: Runner) -> None:
        out_dir = str(self.out_dir or runner.work_dir)
        if self.file_client_args is None and self.backend_args is None and '://' not in out_dir:
            self.backend_args = dict(backend='rkan_mm.atomic')
        super().before_train(runner)
        self._saved = runner.iter
        self._stay_here(runner)
        if is_main_process() and self.backend_args == dict(backend='rkan_mm.atomic'):
            for part in (*Path(self.out_dir).glob(f'*.pth{SUFFIX}'),
                         *Path(runner.work_dir).glob(f'last_checkpoint.*{SUFFIX}')):
                part.unlink(missing_ok=True)  # of a run that was stopped while it wrote

    def _stay_here(self, runner: Runner) -> None:
        """Paths that a checkpoint holds may be of the work dir that this one was copied from, and be removed there."""
        def here(path: str | None) -> str | None:
            return path and self.file_backend.join_path(self.out_dir, Path(path).name)

        info = runner.message_hub.runtime_info
        for name in [name for name in info if name == 'last_ckpt' or name.startswith('best_ckpt')]:
            info[name] = here(info[name])
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = here(self.best_ckpt_path)
        for name, path in getattr(self, 'best_ckpt_path_dict', {}).items():
            self.best_ckpt_path_dict[name] = here(path)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._batches_done = batch_idx + 1
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        self._batches_done = 0
        super().after_train_epoch(runner)

    def after_val(self, runner: Runner) -> None:
        if self._unvalidated is None:
            return
        step, meta = self._unvalidated
        if meta['iter'] == runner.iter and isinstance(runner, Runner):
            self._save_checkpoint_with_step(runner, step, dict(meta, epoch=runner.epoch), validated=True)
        self._unvalidated = None

    def after_train(self, runner: Runner) -> None:
        if self.save_last and getattr(runner.train_loop, 'stop_training', False) and self._saved != runner.iter:
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, meta['epoch' if self.by_epoch else 'iter'], meta, validated=True)
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict, validated: bool = False) -> None:
        self._unvalidated, self._saved = (step, dict(meta)), meta['iter']
        resume_state.store(runner, self._batches_done, validated, meta)
        with self._removing_last(runner):
            if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
                self.keep_ckpt_ids.append(step)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            name = self.filename_tmpl.format(step)
            self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
            runner.message_hub.update_info('last_ckpt', self.last_ckpt)
            runner.save_checkpoint(self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
                                   save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
                                   backend_args=self.backend_args, **self.args)
            if is_main_process():
                AtomicBackend().put_text(self.last_ckpt, Path(runner.work_dir) / 'last_checkpoint')

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best and (metrics := self._with_all(runner, metrics)):
            resume_state.store(runner, self._batches_done, True, dict(epoch=runner.epoch, iter=runner.iter))
            with self._removing_last(runner):
                super()._save_best_checkpoint(runner, metrics)

    def _with_all(self, runner: Runner, metrics: dict) -> dict:
        """With nan, which is never the best, for what save_best waits for in vain: mmengine would stop the run."""
        if 'auto' in self.key_indicators and metrics:
            try:
                self._init_rule(self.rules, [next(iter(metrics))])
            except ValueError as error:
                runner.logger.error(f"save_best='auto' keeps no best checkpoint: {error}. Give "
                                    "default_hooks.checkpoint.rule='greater', or 'less', beside the name of a figure.")
                return {}
        missing = [] if 'auto' in self.key_indicators else [key for key in self.key_indicators if key not in metrics]
        if missing:
            runner.logger.error(f'save_best keeps no checkpoint of this validation: it gave no {", ".join(missing)}, '
                                f'but {", ".join(metrics) or "nothing, as where nothing is found in any picture"}.')
        return {**dict.fromkeys(missing, nan), **metrics}

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif is_main_process() and self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    @contextlib.contextmanager
    def _removing_last(self, runner: Runner) -> Iterator[None]:
        """Put off what is removed meanwhile until all has been written; say what a failure to write leaves."""
        last, backend = self.last_ckpt, self.file_backend
        later = self.file_backend = _RemovingLater(backend)
        try:
            yield
        except OSError as error:
            there = f'{last} is whole and kept' if last else 'There was none before it'
            raise RunError(f'The checkpoint after {runner.iter + 1} iterations could not be written: {error}. {there}; '
                           'make room, then go on with --resume.') from error
        finally:
            self.file_backend = backend
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for remove, path in later.removals:
            if path not in kept:
                with contextlib.suppress(FileNotFoundError):  # another training here may have removed it meanwhile
                    remove(path)
