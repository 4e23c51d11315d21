"""The config's metric on a part of its validation set, for several runs of one model."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import mmengine
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.preflight.config import kind, switches
from rkan_mm.preflight.evaluators import check_part
from rkan_mm.preflight.monitors import is_of_one_class
from rkan_mm.spread import spread

from .subject import Subject, light, quiet

RESAMPLES = 200
RESAMPLED = ('bbox_mAP', 'top1')
"""Metrics that are, whatever their prefix."""
MAX_CELLS = 40_000
"""Classes by images up to which AP is resampled; beyond it takes minutes."""


class Metric:
    """The config's evaluators on evenly spread images of its validation set.

    COCO's figures count all images of an annotation file; here the file is reduced to those that are predicted.

    Args:
        subject: the model and its config.
        num_images: how many; None for all.

    Raises:
        FileNotFoundError: the validation set is not there.
        PreflightError: the config has no evaluator, or one that cannot be brought to count those images alone, or has
            annotations of others.
    """

    def __init__(self, subject: Subject, num_images: int | None) -> None:
        self.subject = subject
        dataset = subject.dataset
        total = len(dataset)
        self.chosen = spread(total, total if num_images is None else num_images)
        self.num_images, self.total = len(self.chosen), total
        configs = subject.cfg.get('val_evaluator') or subject.cfg.get('test_evaluator')
        if not configs:
            raise PreflightError(f'{subject.cfg.filename} has no val_evaluator')
        if isinstance(configs, dict) and 'metrics' in configs:
            if kind(configs) not in ('', 'Evaluator'):
                raise PreflightError(f'{kind(configs)} has rules of its own for what its metrics count, as of several '
                                     'data sets. Give a config with one data set in val_dataloader, and its metric as '
                                     'val_evaluator')
            configs = configs['metrics']
        self.configs = [copy.deepcopy(config) for config in
                        (configs if isinstance(configs, Sequence) and not isinstance(configs, dict) else [configs])]
        self._folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.truth: dict | None = None
        for i, config in enumerate(self.configs):
            given = str(config.get('ann_file') or '')
            if given.endswith('.json'):
                config['ann_file'] = self._reduced(given, config, i)
            if given and config['ann_file'] != given:
                config.pop('backend_args', None)  # the part is a file here
            elif given and self.num_images < total:
                raise PreflightError(f'{kind(config)} counts all objects of {given!r}, also those of images that are '
                                     'not predicted: --eval-images all predicts all.')

    def _reduced(self, ann_file: str, config: dict, i: int) -> str:
        content = mmengine.load(ann_file, backend_args=config.get('backend_args'))
        if not isinstance(content, dict) or 'images' not in content:
            return ann_file
        ids = {self.subject.dataset.get_data_info(place)['img_id'] for place in self.chosen}
        content['images'] = [image for image in content['images'] if image['id'] in ids]
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
        if switches(self.subject.cfg)['evaluator']:
            check_part(self.subject.dataset, self.chosen, content, config, 'validation')
        self.truth = content
        path = Path(self._folder, f'{i}.json')
        path.write_text(json.dumps(content))
        return str(path)

    def __call__(self, model: nn.Module | None = None) -> tuple[dict[str, float], list[BaseDataElement]]:
        """Metrics and predictions, without their masks, of the model as it is now, or of another one.

        Those of one class alone come last.
        """
        with quiet(), DefaultScope.overwrite_default_scope(self.subject.scope):
            evaluator = Evaluator(self.configs)
            evaluator.dataset_meta = self.subject.dataset.metainfo
            kept: list[BaseDataElement] = []
            size = 1 if self.subject.is_detector else 32
            for start in range(0, self.num_images, size):
                batch = [self.subject.sample(place) for place in self.chosen[start:start + size]]
                results = list(self.subject.predict(batch, size, model))
                kept += map(light, results)
                evaluator.process(data_samples=results, data_batch=pseudo_collate(batch))
            metrics = evaluator.evaluate(len(kept))
        names = sorted(metrics, key=lambda name: is_of_one_class(name, evaluator.dataset_meta))
        return {name: float(metrics[name]) for name in names if np.ndim(metrics[name]) == 0}, kept

    def intervals(self, runs: Sequence[Sequence[BaseDataElement]],
                  name: str | None = None) -> list[tuple[float, float] | None]:
        """How far a metric of each run is from the first run's: 95 % intervals, by resampling images in pairs.

        Args:
            runs: predictions.
            name: of the metric.

        Returns:
            Of box AP (COCO, all areas) for detectors and top-1 for classifiers; None where neither is known, or where
            the metric is another one.
        """
        known = name is None or name.rpartition('/')[2] in RESAMPLED
        values = self._resampled(runs) if known else None
        if values is None:
            return [None] * len(runs)
        differences = values - values[0]
        low, high = np.percentile(differences, (2.5, 97.5), axis=1)
        return [None, *zip(low[1:].tolist(), high[1:].tolist(), strict=True)]

    def _resampled(self, runs: Sequence[Sequence[BaseDataElement]]) -> np.ndarray | None:
        """(runs, resamples)."""
        draws = np.random.default_rng(0).integers(self.num_images, size=(RESAMPLES, self.num_images))
        if all('gt_label' in result and 'pred_label' in result and result.gt_label.numel() == 1
               for run in runs for result in run):
            right = np.array([[bool(torch.isin(result.pred_label, result.gt_label).all()) for result in run]
                              for run in runs])
            return 100 * right[:, draws].mean(2)
        if self.truth is None or not self.truth['annotations'] or \
                len(self.truth['categories']) * self.num_images > MAX_CELLS:
            return None
        with quiet():
            return np.stack([self._resampled_ap(run, draws) for run in runs])

    def _resampled_ap(self, run: Sequence[BaseDataElement], draws: np.ndarray) -> np.ndarray:
        """Box AP of each draw of images, matched once."""
        truth = COCO()
        truth.dataset = copy.deepcopy(self.truth)
        truth.createIndex()
        ids = truth.getCatIds(catNms=self.subject.dataset.metainfo['classes'])  # as mmdet numbers labels
        found = []
        for result in run:
            instances = result.pred_instances
            boxes = instances.bboxes.numpy()
            for box, score, label in zip(boxes, instances.scores.tolist(), instances.labels.tolist(), strict=True):
                found.append(dict(image_id=result.img_id, category_id=ids[label], score=score,
                                  bbox=[*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]))
        if not found:
            return np.zeros(len(draws))
        own = COCOeval(truth, truth.loadRes(found), 'bbox')
        own.params.catIds, own.params.imgIds = ids, [result.img_id for result in run]
        thresholds = next((config['iou_thrs'] for config in self.configs if config.get('iou_thrs') is not None), None)
        if thresholds is not None:
            own.params.iouThrs = np.atleast_1d(thresholds)
        own.params.areaRng, own.params.areaRngLbl, own.params.maxDets = [[0, 1e10]], ['all'], [100]
        own.evaluate()
        order = {image: i for i, image in enumerate(own.params.imgIds)}  # evaluate sorts them
        places = np.array([order[result.img_id] for result in run])
        cells = np.array(own.evalImgs, dtype=object).reshape(len(own.params.catIds), 1, -1)
        images, values = list(own.params.imgIds), []
        for draw in draws:
            chosen = places[draw]
            own.evalImgs = cells[..., chosen].ravel().tolist()
            own.params.imgIds = own._paramsEval.imgIds = [images[i] for i in chosen]
            own.accumulate()
            precision = own.eval['precision']
            values.append(precision[precision > -1].mean() if (precision > -1).any() else 0.0)
        return np.array(values)
