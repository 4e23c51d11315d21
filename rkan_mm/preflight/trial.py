"""One image through validation or test before the run: what would fail, or be missing, at their end comes out now."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.logging import MMLogger
from mmengine.runner import Runner, TestLoop, ValLoop
from mmengine.runner.amp import autocast
from torch.utils.data import IterableDataset

from rkan_mm.engine.loss_check_hook import image_paths
from rkan_mm.engine.resume_state import random_state, sampler_of, set_random_state
from rkan_mm.engine.run_error import PreflightError

from .building import to_file

JUDGED = ('CocoMetric', 'FasterCocoMetric', 'VOCMetric', 'Accuracy', 'SingleLabelMetric', 'MultiLabelMetric',
          'AveragePrecision')  # metrics that give figures for one image
COCO_FIGURES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
CURES = (
    ('segm is not in results', 'the model predicts no masks: leave segm out of metric'),
    ('proposal is not in results', 'the model predicts no proposals: leave proposal out of metric'),
    ("'masks'", 'the model predicts no masks, or its pipeline loads none (LoadAnnotations(with_mask=True))'),
    ('selected index k out of range|Top-[0-9]+ accuracy is unavailable',
     'topk is more than there are classes: lower it in the evaluator'),
    ('index [0-9]+ is out of bounds|tuple index out of range|list index out of range',
     'the head may have more classes than the data: set num_classes'),
)


def try_first(runner: Runner, loop: ValLoop | TestLoop, what: str) -> dict[str, float]:
    """Run a loop's first image through data, model and metrics, and leave everything as it was.

    Args:
        runner: with its weights loaded.
        loop: of mmengine's own; others are left alone.
        what: ``'validation'`` or ``'test'``, for messages.

    Returns:
        The figures that the metrics will give, with values of no meaning; empty where that cannot be known.

    Raises:
        PreflightError: what the loop would fail at.
    """
    loader = loop.dataloader
    if type(loop) not in (ValLoop, TestLoop) or isinstance(loader.dataset, IterableDataset) or type(
            sampler_of(loader)) is not DefaultSampler:
        return {}
    if not len(loader.dataset):
        raise PreflightError(f'The data of the {what} are empty: check ann_file, data_prefix and metainfo.classes of '
                             f'{type(loader.dataset).__name__}.')
    model, batch, metric = runner.model, None, None
    with _as_before(runner), _silent():
        try:
            index = next(iter(sampler_of(loader)), 0)
            samples = getattr(loader.dataset, '__getitems__', None)  # as torch's loader asks for a batch
            batch = loader.collate_fn(samples([index]) if samples else [loader.dataset[index]])
            model.eval()
            with torch.no_grad(), autocast(enabled=loop.fp16):
                outputs = (model.val_step if type(loop) is ValLoop else model.test_step)(batch)
            figures = {}
            for metric in loop.evaluator.metrics:
                figures.update(_figures(metric, loop, batch, outputs))
            return figures
        except PreflightError:
            raise
        except Exception as error:
            logged = traceback.format_exc()
            where = next(image_paths(batch), f'number {index}') if batch is not None else 'the first image'
            text = f'{type(error).__name__}: {str(error).rstrip(".")}'
            by = f' in {type(metric).__name__}' if metric else ''
            cure = next((f' ({cure})' for pattern, cure in CURES if re.search(pattern, text)), '')
            problem = PreflightError(
                f'The {what} would fail{by}, as a trial with {where} shows: {text}{cure}. To run all the '
                'same: --cfg-options preflight.trial=False')
            problem.__cause__ = error
    to_file(logged)
    raise problem


def check_monitors(runner: Runner, figures: dict[str, float]) -> None:
    """Raise `PreflightError` if a hook or a schedule waits for a figure that no metric gives."""
    if not figures:
        return
    waiting = {}
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            waiting[f'{type(hook).__name__}(save_best)'] = [key for key in getattr(hook, 'key_indicators', ())
                                                            if key not in ('auto', None)]
        elif isinstance(hook, EarlyStoppingHook):
            waiting[f'{type(hook).__name__}(monitor)'] = [hook.monitor]
    for scheduler in runner.cfg.get('param_scheduler') or []:
        if isinstance(scheduler, dict) and str(scheduler.get('type')).startswith('ReduceOnPlateau'):
            waiting['param_scheduler(monitor)'] = [scheduler.get('monitor', 'loss')]
    for who, keys in waiting.items():
        if missing := [key for key in keys if key not in figures and not key.endswith('loss')]:
            raise PreflightError(f'{who} waits for {", ".join(missing)}, and the validation gives '
                                 f'{", ".join(sorted(figures))}. Name one of these. To run all the same: --cfg-options '
                                 'preflight.trial=False')


def _figures(metric: BaseMetric, loop: ValLoop | TestLoop, batch: Any, outputs: list) -> dict[str, float]:
    """What a metric makes of one image; the metric is as before then."""
    name, before = type(metric).__name__, dict(vars(metric))
    if name not in JUDGED:
        return {}
    try:
        metric.results = []
        metric.process(batch, [output.to_dict() if hasattr(output, 'to_dict') else output for output in outputs])
        if getattr(metric, 'format_only', False):
            return {}
        if name.endswith('CocoMetric'):
            metric.img_ids = [result['img_id'] for _, result in metric.results]
        with tempfile.TemporaryDirectory() as folder:
            metric.outfile_prefix = f'{folder}/trial'
            found = metric.compute_metrics(metric.results)
        if name.endswith('CocoMetric'):  # gives nothing where nothing was found
            found = {**{f'{kind}_{figure}': 0 for kind in metric.metrics for figure in COCO_FIGURES if kind in (
                'bbox', 'segm')}, **found}
        return {f'{metric.prefix}/{key}' if metric.prefix else key: value for key, value in found.items()}
    finally:
        vars(metric).clear()
        vars(metric).update(before)


@contextlib.contextmanager
def _as_before(runner: Runner) -> Iterator[None]:
    """Random numbers and the mode of the model come back."""
    state, training = random_state(), {module: module.training for module in runner.model.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        set_random_state(state)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing of the trial is to be taken for a result: log and printed output are held back."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
