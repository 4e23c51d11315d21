"""Hooks for runs in other processes: write down the losses of each rank; die."""

import json
import os
import signal
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RecordLosses(Hook):
    """``losses_<rank>.json`` in the work dir holds the total loss by iteration."""

    def before_train(self, runner):
        self.losses = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = outputs['loss'].item()
        Path(runner.work_dir, f'losses_{runner.rank}.json').write_text(json.dumps(self.losses))


@HOOKS.register_module()
class RecordShards(Hook):
    """``weights_<rank>.json`` and ``momenta_<rank>.json`` in the work dir hold how many numbers the rank keeps."""

    def before_train(self, runner):
        self.write(runner, 'weights', (p for p in runner.model.parameters()))

    def after_train(self, runner):
        momenta = (state['momentum_buffer'] for state in runner.optim_wrapper.optimizer.state.values())
        self.write(runner, 'momenta', momenta)

    @staticmethod
    def write(runner, name, tensors):
        Path(runner.work_dir, f'{name}_{runner.rank}.json').write_text(str(sum(t.numel() for t in tensors)))


@HOOKS.register_module()
class Die(Hook):
    """Kill one rank in front of an iteration."""

    def __init__(self, rank, at):
        self.rank, self.at = rank, at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == self.rank and runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
