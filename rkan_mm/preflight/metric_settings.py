"""Settings at which a metric of mmdet fails when all is predicted."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import numpy as np
from mmengine.utils import digit_version


def check_settings(metric: Any) -> None:
    """Raise `ValueError` if a metric of mmdet would fail, or give a figure of nothing, when all is predicted."""
    _check_recall(metric)
    if type(metric).__name__ == 'LVISMetric':
        _check_lvis()
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


def _check_lvis() -> None:
    """The lvis of PyPI, 0.5.3, asks numpy for what it has no more, when all is predicted."""
    evaluation = importlib.import_module('lvis.eval')
    if not hasattr(np, 'float') and re.search(r'np\.float\b', inspect.getsource(evaluation)):
        raise ValueError(f"this lvis asks for np.float, which numpy {np.__version__} has no more: write float in "
                         f'{evaluation.__file__}, or take numpy 1.23')
