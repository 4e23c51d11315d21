"""Features whose channels lie side by side in memory, as tensor cores and CPUs like them."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner

from rkan_mm.registry import HOOKS


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Lay the weights of 2-D convolutions out as channels_last, once they are loaded; their outputs follow."""

    priority = 'VERY_HIGH'

    def _convert(self, runner: Runner) -> None:
        wrapped = is_model_wrapper(runner.model)
        model = (runner.model.module if wrapped else runner.model).to(memory_format=torch.channels_last)
        if wrapped:  # what the wrapper has prepared for the gradients lies in memory as the weights did
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    def before_train(self, runner: Runner) -> None:
        self._convert(runner)

    def before_test(self, runner: Runner) -> None:
        self._convert(runner)
