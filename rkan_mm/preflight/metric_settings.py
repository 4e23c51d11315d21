"""Settings and versions with which a metric of mm fails when all is predicted."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import numpy as np
from mmengine.utils import digit_version

RETRIEVAL = 'mmpretrain.evaluation.metrics.retrieval'
OLD_NUMPY = dict(LVISMetric='lvis.eval', YouTubeVISMetric='mmdet.evaluation.functional.ytviseval',
                 RetrievalRecall=RETRIEVAL, RetrievalAveragePrecision=RETRIEVAL)
"""Modules that some versions of ask numpy for what later ones of it have no more, when all is predicted."""
GONE = {'float': ('float', '1.23'), 'in1d': ('np.isin', '2.3')}
"""What to write in its place, and the last numpy that has it."""


def check_settings(metric: Any) -> None:
    """Raise `ValueError` if a metric of mm would fail, or give a figure of nothing, when all is predicted."""
    _check_recall(metric)
    if type(metric).__name__ == 'VOCMetric':
        _check_voc(metric)
    if type(metric).__name__ == 'CityScapesMetric':
        _check_cityscapes(metric)
    if type(metric).__name__.endswith('CocoMetric'):
        _check_coco(metric)


def _check_coco(metric: Any) -> None:
    """Settings at which COCO's evaluation of more than one image fails."""
    if len(metric.proposal_nums) < 3:
        raise ValueError(f"proposal_nums={tuple(metric.proposal_nums)}, and COCO's summary is of three")
    if 100 not in metric.proposal_nums and {'bbox', 'segm'} & set(metric.metrics):
        raise ValueError(f"COCO's AP is of 100 boxes an image, and would be -1 with proposal_nums="
                         f'{tuple(metric.proposal_nums)}: let one be 100')


def _check_voc(metric: Any) -> None:
    """Settings at which VOCMetric fails when all is predicted."""
    if metric.metric == 'mAP' and not isinstance(metric.iou_thrs, list):
        raise ValueError(f'iou_thrs={metric.iou_thrs!r}, and mmdet takes one number with a point, as 0.5, or a list, '
                         'as [0.5, 0.75]')
    if metric.metric == 'mAP' and metric.scale_ranges:
        raise ValueError(f'scale_ranges={metric.scale_ranges}, of whose figures mmdet can give no mean: leave it out')


def _check_cityscapes(metric: Any) -> None:
    """CityScapesMetric looks names of classes up among those of Cityscapes."""
    known = importlib.import_module('cityscapesscripts.helpers.labels').name2label
    if odd := [name for name in (metric.dataset_meta or {}).get('classes') or () if name not in known]:
        raise ValueError(f'Cityscapes has no class {odd[0]}, and CityScapesMetric is for its own: take CocoMetric')


def _check_recall(metric: Any) -> None:
    """Mmdet puts overlaps of all pictures into one array, though each picture has its own number of objects."""
    if digit_version(np.__version__) < digit_version('1.24'):
        return
    for asked, cure in dict(proposal_fast='proposal', recall='mAP').items():
        if asked in (*(getattr(metric, 'metrics', None) or ()), getattr(metric, 'metric', None)):
            raise ValueError(f"mmdet's {asked} fails with numpy {np.__version__}, from 1.24 on: take metric={cure!r}")


def check_numpy(metric: Any) -> None:
    """Raise `ValueError` if a metric of mm asks numpy for what it has no more."""
    if (name := OLD_NUMPY.get(type(metric).__name__)) is None:
        return
    module = importlib.import_module(name)
    source = inspect.getsource(module)
    for gone, (instead, last) in GONE.items():
        if not hasattr(np, gone) and re.search(rf'\bnp\.{gone}\b', source):
            raise ValueError(f'this {name.partition(".")[0]} asks for np.{gone}, which numpy {np.__version__} has no '
                             f'more: write {instead} in {module.__file__}, or take numpy {last}')
