"""What hooks of mm's come to only later in a training: where it fails, much has been paid for."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from rkan_mm.engine.resume_state import random_state, set_random_state
from rkan_mm.engine.run_error import PreflightError

from .building import building
from .config import is_mm, switches
from .fit import innermost
from .red import warn_in_red
from .schedules import tell

HEADS = ('LinearClsHead', 'VisionTransformerClsHead', 'StackedLinearClsHead')
"""Heads that give their scores and the labels to their loss, and nothing else."""


def check_later(runner: Runner) -> None:
    """Raise `PreflightError` if a hook would fail when it first saves or draws, or when it switches a data set."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook):
            _check_arguments(hook, hook.args, runner.save_checkpoint)
            _check_name(hook.filename_tmpl)
        for epoch, pipeline in _pipelines(hook):
            if is_mm(type(hook)) and switches(runner.cfg)['trial'] and isinstance(
                    runner.train_loop, EpochBasedTrainLoop) and epoch < runner.train_loop.max_epochs:
                _try_pipeline(type(hook).__name__, epoch, pipeline, runner.train_loop.dataloader.dataset)
        if type(hook).__name__ == 'SwitchRecipeHook' and is_mm(type(hook)) and isinstance(
                runner.train_loop, EpochBasedTrainLoop):
            for epoch, recipe in hook.schedule.items():
                if epoch <= runner.train_loop.max_epochs and switches(runner.cfg)['trial']:
                    _check_recipe(runner, epoch, recipe)
        if type(hook).__name__ == 'YOLOXModeSwitchHook' and is_mm(type(hook)) and isinstance(
                runner.train_loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            _check_switch(hook, runner)
        if type(hook).__name__ == 'VisualizationHook' and is_mm(type(hook)) and runner.val_loop:
            _check_drawing(hook, runner.visualizer)


def _check_arguments(hook: Hook, given: dict[str, Any], function: Any) -> None:
    """A hook takes any argument and hands on what it does not know."""
    extra = [name for name in given if name not in inspect.signature(function).parameters]
    known = [name for name in inspect.signature(CheckpointHook.__init__).parameters if name not in ('self', 'kwargs')]
    if extra and is_mm(type(hook), '_save_checkpoint_with_step') and is_mm(function):
        near = difflib.get_close_matches(extra[0], known, n=1)
        cure = f'did you mean {near[0]}?' if near else f'it has {", ".join(known)}.'
        raise PreflightError(f'The checkpoint hook has no argument {", ".join(extra)}, and would fail at the '
                             f'first checkpoint; {cure}')


def _check_name(name: str) -> None:
    try:
        name.format(1)
    except (LookupError, ValueError) as error:
        raise PreflightError(f'default_hooks.checkpoint.filename_tmpl={name!r} would fail at the first checkpoint '
                             f'({type(error).__name__}: {error}): the number stands at {{}}, as in epoch_{{}}.pth'
                             ) from error


def _pipelines(hook: Any) -> Iterator[tuple[int, Any]]:
    """The epochs, counted from 0, before which a hook puts another pipeline into the training's data, with it."""
    if type(hook).__name__ == 'PipelineSwitchHook':
        yield hook.switch_epoch, hook.switch_pipeline
    elif type(hook).__name__ == 'SwitchRecipeHook':
        for epoch, recipe in hook.schedule.items():
            if 'train_pipeline' in recipe:
                yield epoch - 1, recipe['train_pipeline']


def _check_recipe(runner: Runner, epoch: int, recipe: dict[str, Any]) -> None:
    """The loss and the mixing of pictures to which mmpretrain's hook switches, beside the labels that there are."""
    model: Any = innermost(runner.model)
    head: Any = getattr(model, 'head', None)
    scores = getattr(model.data_preprocessor, 'to_onehot', None)
    if scores is False and {'loss', 'batch_augments'} & {*recipe}:
        scores = _has_scores(runner.train_loop.dataloader.dataset)
    if recipe.get('batch_augments') and scores is False:
        warn_in_red(f'SwitchRecipeHook will mix no pictures from epoch {epoch} on: mmpretrain mixes scores alone, and '
                    'the pictures have labels. Set to_onehot=True and num_classes in data_preprocessor.')
    if 'loss' not in recipe or type(head).__name__ not in HEADS or not is_mm(type(head)):
        return
    labels, number = torch.zeros(2, dtype=torch.long), head.num_classes
    with building(f'SwitchRecipeHook: its loss, from epoch {epoch} on, would fail (to run all the same: --cfg-options '
                  'preflight.trial=False)'):
        recipe['loss'](torch.zeros(2, number), nn.functional.one_hot(labels, number).float() if scores else labels,
                       avg_factor=2)


def _has_scores(dataset: Any) -> bool:
    """Whether a data set gives a score of each class itself, as soft labels are."""
    state = random_state()
    try:
        return 'gt_score' in dataset[0]['data_samples']
    finally:
        set_random_state(state)


def _check_switch(hook: Any, runner: Runner) -> None:
    """The data set and the model that YOLOX's hook switches before its last epochs, and when it does."""
    dataset, model = runner.train_loop.dataloader.dataset, innermost(runner.model)
    first = max(1, runner.max_epochs - hook.num_last_epochs)
    would = f'YOLOXModeSwitchHook would stop the training before epoch {first}: '
    if not hasattr(dataset, 'update_skip_type_keys'):
        raise PreflightError(f'{would}it has the data set leave out {", ".join(hook.skip_type_keys)}, and '
                             f'{type(dataset).__name__} cannot. Let MultiImageMixDataset be outermost, or leave the '
                             'hook out.')
    if not hasattr(getattr(model, 'detector', model), 'bbox_head'):
        raise PreflightError(f'{would}it is for models with a bbox_head, and {type(model).__name__} has none. Leave it '
                             'out.')
    if first == 1:
        tell(runner.train_loop, f'YOLOXModeSwitchHook leaves out {", ".join(hook.skip_type_keys)} from the first epoch '
             f'on: there are {runner.max_epochs} (one, where iterations are counted), and num_last_epochs is '
             f'{hook.num_last_epochs}. Lower it, for these steps to be of use.')


def _check_drawing(hook: Any, visualizer: Any) -> None:
    if getattr(hook, 'enable', False) and not hasattr(visualizer, 'visualize_cls'):
        raise PreflightError('VisualizationHook would stop the training at its first validation, as '
                             f'{type(visualizer).__name__} cannot draw for it: write '
                             "visualizer=dict(type='UniversalVisualizer'), or enable=False.")


def _try_pipeline(who: str, epoch: int, pipeline: Any, dataset: Any) -> None:
    if not hasattr(dataset, 'pipeline'):
        if who == 'PipelineSwitchHook':  # the other one looks within wrappers
            warn_in_red(f'{who} will change nothing: it sets the pipeline of the data set itself, and '
                        f'{type(dataset).__name__} has none.')
        return
    before, state = dataset.pipeline, random_state()
    try:
        from mmcv.transforms import Compose
        with building(f'{who}: its pipeline, from epoch {epoch + 1} on, would fail (to run all the same: --cfg-options '
                      'preflight.trial=False)'):
            dataset.pipeline = Compose(pipeline) if isinstance(pipeline, (list, tuple)) else pipeline
            dataset[0]
    finally:
        dataset.pipeline = before
        set_random_state(state)
