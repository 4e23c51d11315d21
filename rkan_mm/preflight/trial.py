"""One image through validation or test before the run: what would fail, or be missing, at their end comes out now."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner, TestLoop, ValLoop
from mmengine.runner.amp import autocast
from mmengine.runner.loops import _parse_losses, _update_losses
from torch.utils.data import DataLoader, IterableDataset

from rkan_mm.engine.loss_check_hook import image_paths
from rkan_mm.engine.resume_state import random_state, sampler_of, set_random_state
from rkan_mm.engine.run_error import PreflightError, RunError

from .building import SINGLE_ALONE, to_file
from .config import is_mm
from .evaluators import takes_in_pictures
from .fit import innermost
from .images import check_sizes
from .metric_settings import check_settings
from .monitors import figures_by_settings

OF_LABELS = ('Accuracy', 'SingleLabelMetric', 'MultiLabelMetric', 'AveragePrecision', 'ConfusionMatrix',
             'RetrievalRecall', 'RetrievalAveragePrecision')
"""Metrics of classifiers, which take any number of images: what fails with one fails with all."""
JUDGED = (*OF_LABELS, 'CocoMetric', 'FasterCocoMetric', 'VOCMetric', 'CocoPanopticMetric')
"""Metrics that give figures for one image."""

PROCESSING = ('OpenImagesMetric', 'CocoOccludedSeparatedMetric', 'LVISMetric', 'CrowdHumanMetric', 'CityScapesMetric',
              'VOCMultiLabelMetric', 'VOCAveragePrecision')
"""Metrics that take in one image alone, without a figure; what some will give stands in their settings."""

CURES = (
    ('segm is not in results', 'the model predicts no masks: leave segm out of metric'),
    ('proposal is not in results', 'the model predicts no proposals: leave proposal out of metric'),
    ('metric item .* is not supported', 'metric_items are such as mAP, mAP_50, mAP_s and AR@100'),
    SINGLE_ALONE,
    ("Calling nonzero on 0d arrays|object of type 'float' has no len",
     "leave iou_thrs out: COCO's summary is of 0.50:0.95"),
    ("KeyError: '(labels|bboxes|instances)'", 'its pipeline loads no annotations, or PackDetInputs does not keep them: '
                                              "LoadAnnotations(with_bbox=True), and 'instances' in meta_keys"),
    ("too many dimensions 'str'", 'gt_label is of numbers of classes, not of their names'),
    ("KeyError: 'gt_label'", 'its pictures have no labels: look at with_label and ann_file; to predict alone, '
     'test_evaluator=[] with --out'),
    ("KeyError: 'gt_label_difficult'", 'PackInputs of its pipeline does not keep it: add it to meta_keys'),
    ("img_meta.get|KeyError: '(img_id|img_path|img_shape|ori_shape|scale_factor)'",
     'PackDetInputs of its pipeline does not keep it: add it to meta_keys; or the ann_file lacks it'),
    ("'masks'", 'the model predicts no masks, or its pipeline loads none (LoadAnnotations(with_mask=True))'),
    ('^model: .*selected index k out of range',
     'it takes the best of more places than so small a picture has: a larger scale, or fewer queries or proposals'),
    ('selected index k out of range|Top-[0-9]+ accuracy is unavailable',
     'topk is more than there are classes: lower it in the evaluator'),
    ('to have [0-9]+ channels, but got|shapes cannot be multiplied|expected input.* channels',
     'in_channels of the neck or head are not those that the part before gives'),
    ('length of score [0-9]+ should be equal to the num_classes',
     'data_preprocessor.num_classes is that of the head: set both alike'),
    ("'NoneType' object has no attribute 'predict'", 'the model has no head'),
    ("KeyError: 'pred_(label|score)'", 'it is a metric of one task; of several it is MultiTasksMetric'),
    ('batched. input to conv2d, but got input of size', 'a head of maps, such as CSRAClsHead, goes without '
     'GlobalAveragePooling: leave the neck out'),
    ('index [0-9]+ is out of bounds|tuple index out of range|list index out of range',
     'the head may have more classes than the data: set num_classes'),
)


def try_first(runner: Runner, loop: ValLoop | TestLoop, what: str) -> dict[str, Any] | None:
    """Run a loop's first image through data, model and metrics, and leave everything as it was.

    What fails so is tried again with the first batch, as the loop will take it, and only then refused.

    Args:
        runner: with its weights loaded.
        loop: of mmengine's own; others are left alone.
        what: ``'validation'`` or ``'test'``, for messages.

    Returns:
        The figures that the metrics will give, in their order, with values of no meaning; None where that cannot be
        known.

    Raises:
        PreflightError: what the loop would fail at.
    """
    if not _can_be_tried(runner, loop):
        return None
    loader, problem, logged = loop.dataloader, PreflightError(), ''
    if not len(loader.dataset):
        raise PreflightError(f'The data of the {what} are empty: check ann_file, data_prefix and metainfo.classes of '
                             f'{type(loader.dataset).__name__}.')
    with _as_before(runner), _silent():
        check_sizes(loader, what)
        first = next(iter(loader.batch_sampler))
        for indices, changes in (first[:1], dict(num_workers=0, timeout=0)), (first, {}):
            trial = Trial(runner, loop)
            try:
                return trial.run(_part(loader, indices, **changes), what)
            except RunError:
                raise
            except Exception as error:
                problem, logged = trial.problem(error, what), traceback.format_exc()
    to_file(logged)
    raise problem


def try_sizes(runner: Runner, loader: Any) -> None:
    """Raise `PreflightError` if pictures of the training make no batch; see `check_sizes`."""
    if type(loader) is DataLoader and is_mm(type(loader.dataset)) and not isinstance(loader.dataset, IterableDataset):
        with _as_before(runner), _silent():
            check_sizes(loader, 'training')


def _can_be_tried(runner: Runner, loop: ValLoop | TestLoop) -> bool:
    """Whether mmengine's own loop and loader lead to what will be, and no whole gallery has to be taken in before."""
    loader: Any = getattr(loop, 'dataloader', None)
    if type(loop) not in (ValLoop, TestLoop) or type(loader) is not DataLoader or isinstance(
            loader.dataset, IterableDataset) or loader.batch_sampler is None or type(
            sampler_of(loader)) is not DefaultSampler:
        return False
    split = 'val' if type(loop) is ValLoop else 'test'
    names = (f'before_{split}', f'before_{split}_epoch', f'before_{split}_iter', '_before_epoch', '_before_iter')
    return not takes_in_pictures(innermost(runner.model)) and all(is_mm(type(hook), *names) and not type(
        hook).__name__.startswith('PrepareProto') for hook in runner.hooks)


def _part(loader: DataLoader, indices: list[int], **changes: int) -> DataLoader:
    """The loader for one batch alone."""
    part = copy.copy(loader)
    vars(part).update(batch_sampler=[indices], persistent_workers=False, _iterator=None, **changes)
    return part


class Trial:
    """A batch on its way through model and metrics, with the place that it has come to."""

    def __init__(self, runner: Runner, loop: ValLoop | TestLoop) -> None:
        self.runner, self.loop = runner, loop
        self.batch: Any = None
        self.metric: BaseMetric | None = None

    def run(self, loader: DataLoader, what: str) -> dict[str, Any] | None:
        """The figures of all metrics; None where some are unknown."""
        model, loop = self.runner.model, self.loop
        self.batch = next(iter(loader))
        model.eval()
        with torch.no_grad(), autocast(enabled=loop.fp16):
            outputs = (model.val_step if type(loop) is ValLoop else model.test_step)(self.batch)
        outputs, losses = _update_losses(outputs, {})
        figures: list[dict[str, Any] | None] = []
        for self.metric in loop.evaluator.metrics:
            figures.append(_figures(self.metric, self.batch, outputs, judged=type(loop.evaluator) is Evaluator))
        if type(loop.evaluator) is not Evaluator:
            return None
        counts = Counter(key for each in figures for key in each or ())
        if double := [key for key, count in counts.items() if count > 1]:
            raise PreflightError(f'{len(loop.evaluator.metrics)} metrics of the {what} give {double[0]}, and mmengine '
                                 "stops at that when all is predicted: give them other names by prefix='...'.")
        if None in figures:
            return None
        figures.append(_parse_losses(losses, 'val') if losses else {})
        return {key: value for each in figures if each for key, value in each.items()}

    def problem(self, error: Exception, what: str) -> PreflightError:
        """What has gone wrong, as one sentence."""
        where = next(image_paths(self.batch), 'the first image') if self.batch is not None else 'the first image'
        told = str(error).rstrip('.') or traceback.extract_tb(error.__traceback__)[-1].line  # an assertion's line
        text = f'{type(error).__name__}: {told}'
        cure = _cure(text if self.metric else f'model: {text}')
        by = f' in {type(self.metric).__name__}' if self.metric else ''
        problem = PreflightError(f'The {what} would fail{by}, as a trial with {where} shows: {text}{cure}. To '
                                 'run all the same: --cfg-options preflight.trial=False')
        problem.__cause__ = error
        return problem


def _cure(text: str) -> str:
    return next((f' ({cure})' for pattern, cure in CURES if re.search(pattern, text)), '')


def _figures(metric: BaseMetric, batch: Any, outputs: list, judged: bool) -> dict[str, Any] | None:
    """What a metric makes of a batch, None where that cannot be known; the metric is as before then.

    Where the batch may be none that it will have to judge, it takes it in alone.
    """
    name, before = type(metric).__name__, dict(vars(metric))
    if name == 'MultiTasksMetric' and is_mm(type(metric)):
        return _figures_of_tasks(metric, batch, outputs, judged)
    if name not in JUDGED + PROCESSING or not is_mm(type(metric)) or getattr(metric, 'use_mp_eval', False):
        return None
    coco = name.endswith('CocoMetric')
    check_settings(metric)
    with tempfile.TemporaryDirectory() as folder:
        try:
            metric.results, metric.outfile_prefix = [], f'{folder}/trial'
            if name == 'CityScapesMetric':
                metric.outfile_prefix = folder  # to which it adds the names of pictures
            if name == 'CocoPanopticMetric':
                metric.seg_out_dir = folder  # it draws each picture when it takes it in
            metric.process(batch, [output.to_dict() if hasattr(output, 'to_dict') else output for output in outputs])
            if not judged:
                return None
            if getattr(metric, 'format_only', False):
                return {}
            if name in PROCESSING:
                return figures_by_settings(metric)
            if coco:
                metric.img_ids = [result['img_id'] for _, result in metric.results]
                _find_something(metric.results)
            try:
                found = metric.compute_metrics(metric.results)
            except Exception as error:
                if name in OF_LABELS or _cure(f'{type(error).__name__}: {error}'):
                    raise
                return None  # it may be that there is too little for it in one batch
            if not found:
                return None
            return {f'{metric.prefix}/{key}' if metric.prefix else key: value for key, value in found.items()}
        finally:
            vars(metric).clear()
            vars(metric).update(before)


def _figures_of_tasks(metric: Any, batch: Any, outputs: list, judged: bool) -> dict[str, Any] | None:
    """Of a metric with metrics for each task, on the images that have a label for it."""
    samples = [output.to_dict() for output in outputs]
    known = sorted(task for task, sample in samples[0].items() if 'eval_mask' in sample)
    if odd := [task for task in metric._metrics if task not in known]:
        raise ValueError(f'task_metrics names the task {odd[0]!r}, and the heads of the model are for '
                         f'{", ".join(known)}')
    found: list[dict[str, Any] | None] = []
    for task, metrics in metric._metrics.items():
        labelled = [sample[task] for sample in samples if sample[task]['eval_mask']]
        for each in metrics:
            figures = _figures(each, batch, labelled, judged) if labelled else None
            found.append(figures and {f'{task}_{key}': value for key, value in figures.items()})
    return None if None in found else {key: value for each in found if each for key, value in each.items()}


def _find_something(results: list[tuple[dict, dict]]) -> None:
    """Where nothing is found in a batch COCO's metric gives nothing: let the first image as a whole be found."""
    if any(len(found['bboxes']) for _, found in results):
        return
    image, found = results[0]
    height, width = int(image['height']), int(image['width'])
    found.update(bboxes=np.array([[0, 0, width, height]], np.float32), scores=np.full(1, 0.5, np.float32),
                 labels=np.zeros(1, int))
    if 'masks' in found:
        from pycocotools.mask import encode
        found['masks'] = [encode(np.ones((height, width), np.uint8, order='F'))]
    if 'mask_scores' in found:
        found['mask_scores'] = found['scores']


@contextlib.contextmanager
def _as_before(runner: Runner) -> Iterator[None]:
    """Random numbers, buffers and attributes of the model come back, such as whether it trains."""
    state = random_state()
    attributes = {module: ({**vars(module)}, {**module._buffers}) for module in runner.model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in runner.model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                if buffer.shape == value.shape:
                    buffer.copy_(value)
        for module, (before, held) in attributes.items():
            vars(module).clear()
            vars(module).update(before)
            module._buffers.clear()
            module._buffers.update(held)
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
