"""Runs that would come to nothing, or to figures of other data than it seems: found once all is built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset

from rkan_mm.engine.resume_state import sampler_of
from rkan_mm.engine.run_error import PreflightError
from rkan_mm.spread import spread

from .config import is_mm
from .datasets import parts_of
from .evaluators import takes_in_pictures
from .fit import innermost
from .red import warn_in_red
from .schedules import check_schedules, schedules_of, tell_averages

HIGHER = 'mAP|AP50|accuracy|top[0-9]|f1-score|precision|recall|IoU'
"""Figures that are good when they are high."""

UNEVEN = ('RepeatAugSampler', 'ClassAwareSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler')
"""Samplers for training, which take images as often as is good for it."""

LOOKED_UP = 1000
"""Images of the training, evenly spread, that are looked for among those of the validation."""


def check_training(runner: Runner) -> None:
    """Raise `PreflightError` if a training would take no step; warn in red where nothing would be learned or kept."""
    loop, wrapper = runner.train_loop, runner.optim_wrapper
    _check_batches(getattr(loop, 'dataloader', None))
    endless = isinstance(getattr(loop, 'dataloader', None), DataLoader) and isinstance(
        sampler_of(loop.dataloader), InfiniteSampler)
    if endless and isinstance(loop, EpochBasedTrainLoop) and is_mm(type(loop)):
        raise PreflightError('The first epoch of the training would never end: its sampler is an InfiniteSampler. Give '
                             "train_dataloader.sampler=dict(type='DefaultSampler', shuffle=True), or count iterations: "
                             "train_cfg=dict(type='IterBasedTrainLoop', max_iters=...).")
    name, done, unit = (('max_iters', runner.iter, 'iterations') if isinstance(loop, IterBasedTrainLoop) else
                        ('max_epochs', runner.epoch, 'epochs'))
    last = getattr(loop, f'_{name}', None)
    if isinstance(last, (int, float)):
        if last < 1:
            raise PreflightError(f'train_cfg.{name}={last}: nothing would be trained. Give at least 1.')
        if done >= last:
            warn_in_red(f'Nothing is left to train: {done} {unit} are done, and train_cfg.{name} is {last}. To go on, '
                        'raise it.')
    for hook in runner.hooks:
        _check_keeping(hook, runner)
    for who, key, rule in _judged(runner):
        if (rule == 'less' and re.search(HIGHER, key)) or (rule == 'greater' and 'loss' in key):
            warn_in_red(f"{who}: by rule='{rule}' the worst {key} is taken for the best. Write "
                        f"rule='{'less' if rule == 'greater' else 'greater'}'.")
    if not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
        warn_in_red('No checkpoint will be kept: there is no CheckpointHook in default_hooks.')
    if takes_in_pictures(innermost(runner.model)) and runner.val_loop and not any(
            type(hook).__name__.startswith('PrepareProto') for hook in runner.hooks):
        warn_in_red('After the first validation the model compares pictures with features of weights that it has no '
                    "more: add custom_hooks=[dict(type='PrepareProtoBeforeValLoopHook')].")
    check_schedules(runner)
    tell_averages(runner)
    _check_scaling(runner)
    _check_keys(runner)
    if isinstance(wrapper, OptimWrapper):
        _check_learning(wrapper)
    elif isinstance(wrapper, OptimWrapperDict):
        for name, each in wrapper.items():
            _check_learning(each, f'optim_wrapper.{name}')


def _check_scaling(runner: Runner) -> None:
    """Mmengine scales the lr by the pictures of an iteration, however many iterations make a step of the optimizer."""
    scaling, size = runner.cfg.get('auto_scale_lr') or {}, getattr(runner.train_dataloader, 'batch_size', None)
    counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    if scaling.get('enable') and size and counts > 1:
        pictures = size * runner.world_size
        warn_in_red(f'--auto-scale-lr scales the lr to {pictures} pictures, those of an iteration, and each step is '
                    f'made of {pictures * counts} (accumulative_counts={counts}). Where base_batch_size='
                    f'{scaling.get("base_batch_size")} means those of a step, give lr times {counts}.')


def _check_keys(runner: Runner) -> None:
    """Mmengine's custom_keys are parts of names of parameters; those that are part of none change nothing."""
    given = runner.cfg.get('optim_wrapper') or {}
    keys = (given.get('paramwise_cfg') or {}).get('custom_keys') or {}
    if not keys or given.get('constructor', 'DefaultOptimWrapperConstructor') != 'DefaultOptimWrapperConstructor':
        return
    model = innermost(runner.model)
    names = [name for name, _ in model.named_parameters()]
    if not any(key in name for key in keys for name in names):
        parts = list(dict.fromkeys(name.partition('.')[0] for name in names))
        warn_in_red(f'optim_wrapper.paramwise_cfg.custom_keys ({", ".join(keys)}) are part of no name of a parameter, '
                    f'and change nothing: names begin with {", ".join(parts)}.')


def _check_learning(wrapper: OptimWrapper, where: str = 'optim_wrapper') -> None:
    # wrapper.param_groups has one group more, without parameters, where there are several
    trained = [group for group in wrapper.optimizer.param_groups if any(each.requires_grad for each in group['params'])]
    if all(group.get('initial_lr', group.get('lr', 1)) == 0 for group in trained):
        warn_in_red('Nothing will be learned: ' + (f'the lr of all parameters is 0, by {where}.' if trained else
                                                   f'all parameters are frozen, or not in {where}.'))
    for name, limit in (getattr(wrapper, 'clip_grad_kwargs', None) or {}).items():
        if name in ('max_norm', 'clip_value') and limit <= 0:
            warn_in_red(f'Nothing will be learned: {where}.clip_grad.{name}={limit} makes all gradients 0.')


def _check_keeping(hook: Hook, runner: Runner) -> None:
    """Warn in red of a hook that keeps no checkpoint, or waits for a validation that does not come."""
    loop = runner.train_loop
    best, validated = isinstance(hook, CheckpointHook) and bool(hook.save_best), bool(
        runner.val_loop and validates(loop))
    if (isinstance(hook, CheckpointHook) and hook.by_epoch and hook.interval > 0
            and isinstance(loop, IterBasedTrainLoop)):
        warn_in_red('default_hooks.checkpoint counts epochs (by_epoch=True), and this training counts iterations: none '
                    f'is kept before its end{" but the best" if best else ""}. Write by_epoch=False, and interval in '
                    'iterations.')
    if not validated and (best or isinstance(hook, EarlyStoppingHook)):
        warn_in_red(f'{type(hook).__name__}{"(save_best)" if best else ""} waits for a validation, and there is none.')
    if not isinstance(hook, CheckpointHook) or hook.save_last or (best and validated):
        return
    steps, begin = getattr(loop, 'max_epochs' if hook.by_epoch else 'max_iters', None), getattr(hook, 'save_begin', 0)
    if hook.interval < 1 or (steps and (begin or hook.interval) > steps):
        warn_in_red(f'No checkpoint will be kept: default_hooks.checkpoint has interval={hook.interval}, '
                    f'{f"save_begin={begin}, " if begin else ""}save_last=False and '
                    f'{"save_best without a validation" if best else "no save_best"}.')


def validates(loop: Any) -> bool:
    """Whether a training loop comes to its first validation."""
    counts_epochs = not isinstance(loop, IterBasedTrainLoop)  # of which mmengine calls all iterations one epoch
    last = (counts_epochs and getattr(loop, 'max_epochs', None)) or getattr(loop, 'max_iters', None)
    return last is None or getattr(loop, 'val_begin', 1) <= last


def _judged(runner: Runner) -> Iterator[tuple[str, str, str | None]]:
    """By which figures hooks and schedules call a model better: their names, the figure and the rule."""
    for hook in runner.hooks:
        name = type(hook).__name__
        if isinstance(hook, CheckpointHook) and hook.save_best:
            for key, rule in zip(getattr(hook, 'key_indicators', ()), getattr(hook, 'rules', ()), strict=False):
                yield f'{name}(save_best)', str(key), rule
        elif isinstance(hook, EarlyStoppingHook):
            yield f'{name}(monitor)', hook.monitor, hook.rule
    for _, where, schedule in schedules_of(runner):
        if getattr(schedule, 'need_val_args', False):  # mmengine's rule is 'less' where none is given
            yield where, schedule.monitor, schedule.rule


def _size(loader: Any) -> int | None:
    """Samples that a loader takes in an epoch, in this process; None where that cannot be known."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    sampler = sampler_of(loader)
    try:
        return None if isinstance(sampler, InfiniteSampler) else len(sampler)
    except TypeError:
        return None


def _batching(loader: Any) -> tuple[int | None, bool]:
    """Images of a batch, and whether the last one is left out where it has less; a batch sampler has its own.

    Those of mmdet's MultiDataAspectRatioBatchSampler are a list, of which nothing is known here.
    """
    batches = getattr(loader, 'batch_sampler', None)
    size = getattr(batches, 'batch_size', None)
    return size if isinstance(size, int) else None, bool(getattr(batches, 'drop_last', False))


def _check_batches(loader: Any) -> None:
    size, (batch_size, drop_last) = _size(loader), _batching(loader)
    if size and batch_size and drop_last and size < batch_size:
        raise PreflightError(f'train_dataloader: batch_size={batch_size} with drop_last=True leaves no batch of '
                             f'{size} images: lower batch_size, or leave drop_last out.')


def check_predicting(loop: Any, what: str) -> None:
    """Raise `PreflightError` if a validation or test would have no end, or would leave out images.

    Args:
        loop: mmengine's or the user's.
        what: ``'validation'`` or ``'test'``, for messages.
    """
    loader = loop.dataloader
    if is_mm(type(loop)) and type(loop).__name__ == 'TeacherStudentValLoop' and not hasattr(
            innermost(loop.runner.model), 'teacher'):
        raise PreflightError(f'{type(loop).__name__} of the {what} is for a teacher and a student, and '
                             f'{type(innermost(loop.runner.model)).__name__} has none: leave type out of val_cfg.')
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    if isinstance(sampler_of(loader), InfiniteSampler) and is_mm(type(loop)):
        raise PreflightError(f'The {what} would never end: its sampler is an InfiniteSampler. Give '
                             "sampler=dict(type='DefaultSampler', shuffle=False).")
    if is_mm(type(sampler_of(loader)), '__iter__') and type(sampler_of(loader)).__name__ in UNEVEN:
        raise PreflightError(f'The {what} would take some images several times and others never: its sampler is a '
                             f"{type(sampler_of(loader)).__name__}. Give sampler=dict(type='DefaultSampler', "
                             'shuffle=False). To run all the same: --cfg-options preflight.evaluator=False')
    size, (batch_size, drop_last) = _size(loader), _batching(loader)
    if size and batch_size and drop_last and (left_out := size % batch_size):
        raise PreflightError(f'The {what} would leave out {left_out} of {size} images: set drop_last=False. To run all '
                             'the same: --cfg-options preflight.evaluator=False')


def check_apart(trained: Any, predicted: Any, what: str) -> None:
    """Warn in red if images of the training are among those of a validation or test."""
    if not all(is_mm(type(part)) for dataset in (trained, predicted) for part in (dataset, *parts_of(dataset))):
        return
    mine = {_path(trained, i) for i in spread(len(trained), LOOKED_UP)} - {None}
    both = sorted(path for path in mine & {_path(predicted, i) for i in range(len(predicted))} if path) if mine else []
    if both:
        warn_in_red(f'{len(both)} of {len(mine)} images of the training that were looked up are in the {what} as well, '
                    f'such as {both[0]}: its figures will be those of images that are known.')


def _path(dataset: Any, i: int) -> str | None:
    return dataset.get_data_info(i).get('img_path') if hasattr(dataset, 'get_data_info') else None


def watch_small_maps(model: nn.Module, loader: Any) -> Callable[[], None]:
    """Where the last batch of an epoch is one image, stop the first step at a batch norm that could not take it.

    Returns:
        What ends the watch; call it after the first step.
    """
    size, (batch_size, drop_last) = _size(loader), _batching(loader)
    if not size or not batch_size or batch_size < 2 or drop_last or size % batch_size != 1:
        return lambda: None

    def look(norm: nn.Module, inputs: tuple) -> None:
        if norm.training and inputs[0].numel() == inputs[0].shape[0] * inputs[0].shape[1]:
            raise PreflightError(
                f'The last of {math.ceil(size / batch_size)} batches has one image, and a batch norm for '
                f'{inputs[0].shape[1]} channels sees one pixel of it, of which it has no variance: set '
                'train_dataloader.drop_last=True, or another batch_size.')

    handles = [norm.register_forward_pre_hook(look) for norm in _norms(model)]

    def end() -> None:
        for handle in handles:
            handle.remove()
    return end


def _norms(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, _BatchNorm)
            and not isinstance(module, nn.SyncBatchNorm))
