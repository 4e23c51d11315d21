"""A loss that is no number ends the run before it gets into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner

from rkan_mm.registry import HOOKS

from .run_error import RunError


def image_paths(data: Any) -> Iterator[str]:
    """The files of the images in a batch of mmdet or mmpretrain."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, (list, tuple)):
        for part in data:
            yield from image_paths(part)
    elif path := getattr(data, 'img_path', None):
        yield path


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class LossCheckHook(Hook):
    """Stop when a loss is NaN or infinite, naming the losses and the images of the batch.

    What is looked at is the loss alone; where a step gives none, as with several optimizers, whatever has ``loss`` in
    its name. Under AMP gradients may overflow; the scaler then leaves the step out, and the loss stays finite.

    Raises:
        RunError: the loss of this iteration, on any rank, is not finite. It comes before a checkpoint is saved.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        values = {name: torch.as_tensor(value).detach() for name, value in (outputs or {}).items()
                  if 'loss' in name and isinstance(value, (torch.Tensor, float))}
        totals = [values['loss']] if 'loss' in values else values.values()
        if all(torch.isfinite(total).all() for total in totals):
            return
        bad = {name: value.tolist() for name, value in values.items() if not torch.isfinite(value).all()}
        losses = ', '.join(f'{name} = {value}' for name, value in bad.items())
        last = runner.message_hub.runtime_info.get('last_ckpt')
        raise RunError(
            f'Iteration {runner.iter + 1}: {losses}. The batch: {", ".join(image_paths(data_batch)) or "unknown"}. '
            f'Nothing was saved since {last or "the start"}. Look at these images and their annotations; lower the lr, '
            'lengthen the warm-up or clip the gradients (optim_wrapper.clip_grad); then go on with --resume.')
