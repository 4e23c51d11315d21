"""mmengine's training loops, going on after a resume exactly where the checkpoint was saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from rkan_mm.registry import LOOPS

from . import resume_state
from .run_error import RunError


def _rest(dataloader: DataLoader, batches: Iterator[list[int]]) -> Iterator:
    """What the dataloader gives for the batches of indices; none before them is loaded."""
    rest = copy.copy(dataloader)
    vars(rest).update(batch_sampler=batches, persistent_workers=False, _iterator=None)
    return iter(rest)


class _FilledLoop(BaseLoop):
    """Raises `RunError` if there is nothing to train on."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        try:
            super().__init__(runner, dataloader, *args, **kwargs)
            empty = hasattr(self.dataloader.dataset, '__len__') and not len(self.dataloader.dataset)
        except ValueError as error:
            empty = 'need at least one array' in str(error)  # of mmengine's BaseDataset when it has no sample
            if not empty:
                raise
        if empty:
            raise RunError('The training set is empty: it has no sample, or its filter_cfg left none. Check ann_file, '
                           'data_prefix and metainfo.classes.')


@LOOPS.register_module()
@MMENGINE_LOOPS.register_module()
class ResumableEpochLoop(_FilledLoop, EpochBasedTrainLoop):
    """Epochs; a checkpoint saved within one resumes at its next batch, and a validation that was due is made up for."""

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self._resumed = resume_state.take(self.runner)
        if self._resumed and not self._resumed['batches_done']:
            self._restore()
            if not self._resumed['validated']:
                self._validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._resumed['batches_done'] if self._resumed else 0
        if done:
            indices = iter(self.dataloader.batch_sampler)
            for _ in range(done):
                next(indices)
            batches = _rest(self.dataloader, indices)
            self._restore()
        else:
            batches = self.dataloader
        self._resumed = None
        for idx, data_batch in enumerate(batches, done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _restore(self) -> None:
        if self._resumed and self._resumed['random']:
            resume_state.set_random_state(self._resumed['random'])

    def _validate(self) -> None:
        self._decide_current_val_interval()
        if (self.runner.val_loop is not None and self._epoch >= self.val_begin
                and (self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs)):
            self.runner.val_loop.run()


@LOOPS.register_module()
@MMENGINE_LOOPS.register_module()
class ResumableIterLoop(_FilledLoop, IterBasedTrainLoop):
    """Iterations; a resumed run passes over the batches that were used without loading them."""

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        resumed = resume_state.take(self.runner)
        if self._iter > 0 and not getattr(self, 'fast_forward_on_resume', False):
            self._pass_over(self._iter)
        if resumed and resumed['random']:
            resume_state.set_random_state(resumed['random'])
        if resumed and not resumed['validated']:
            self._validate()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _pass_over(self, batches: int) -> None:
        if isinstance(self.dataloader.dataset, IterableDataset):  # has no indices: read what was used
            for _ in range(batches):
                next(self.dataloader_iterator)
            return
        sampler, epoch = resume_state.sampler_of(self.dataloader), 0
        if hasattr(sampler, '_indices_of_rank'):  # an InfiniteSampler, whose indices may be drawn from already
            sampler.indices = sampler._indices_of_rank()
        indices = iter(self.dataloader.batch_sampler)
        for _ in range(batches):
            try:
                next(indices)
            except StopIteration:
                epoch += 1
                if hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch(epoch)
                indices = iter(self.dataloader.batch_sampler)
                next(indices)
        self.dataloader_iterator._epoch = epoch
        self.dataloader_iterator._iterator = _rest(self.dataloader, indices)

    def _validate(self) -> None:
        self._decide_current_val_interval()
        if (self.runner.val_loop is not None and self._iter >= self.val_begin
                and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)):
            self.runner.val_loop.run()
