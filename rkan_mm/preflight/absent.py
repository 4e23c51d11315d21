"""Classes that a data set has no example of: they are not learned, or not in the figures, and nothing says so."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from mmengine.fileio import get, list_from_file

from .annotations import some
from .classification import all_labels, labels_of
from .config import dicts_with, is_mm, reads_as_mm
from .datasets import names_of, parts_of
from .images import LOOKED_AT
from .red import warn_in_red

COUNTED = 100
"""Boxes of a picture that COCO's evaluation looks at."""

PANOPTIC = 'CocoPanopticMetric'

OF_OBJECTS = ('CocoMetric', 'FasterCocoMetric', 'VOCMetric', 'CocoOccludedSeparatedMetric', PANOPTIC)
"""Metrics of mmdet whose mean leaves out classes that the data have no object of, on data that should have all.

LVIS and Open Images have thousands of classes, and their own validation has not all.
"""


def tell_absent_labels(dataset: Any, num_classes: int | None, what: str) -> None:
    """Warn in red of the classes that a classification data set has no image of.

    Args:
        dataset: of mmpretrain or ours, or a wrapper of such; others are passed over.
        num_classes: of the head, where the data set itself does not name its classes.
        what: 'train', 'validation' or 'test'.
    """
    if not all(is_mm(type(part)) for part in (dataset, *parts_of(dataset))):
        return
    present: set[int] = set()
    several = False
    for part in parts_of(dataset):
        found = all_labels(part)
        if found is None:
            return
        several = several or labels_of(part) is None
        present.update(np.unique(found[0]).tolist())
    names = names_of(dataset) or range(num_classes or 0)
    absent = [name for i, name in enumerate(names) if i not in present]
    if not absent or not present:
        return
    means = 'which cannot be learned' if what == 'train' else (
        'which means over classes count as 0' if several else 'of which its figures say nothing')
    cut = any(getattr(part, '_indices', None) for part in (dataset, *parts_of(dataset)))
    cure = " Its indices leave them out: type='rkan_mm.BalancedSubset' takes as many of each class." if cut else ''
    warn_in_red(f'{type(next(parts_of(dataset))).__name__} of the {what} has no images of {_some_of(absent, names)}, '
                f'{means}.{cure}')


def tell_absent_objects(infos: Sequence[dict], classes: Sequence[str] | None, metrics: Sequence[str],
                        what: str) -> None:
    """Warn in red of classes that a mean over classes leaves out, since the data have no object of them.

    Args:
        infos: of each picture, as a data set of mmdet gives them.
        classes: names, in the order of labels; None where they are unknown.
        metrics: names of the types of those that judge.
        what: ``'validation'`` or ``'test'``.
    """
    metric = next((name for name in metrics if name in OF_OBJECTS), None)
    if not classes or metric is None:
        return
    present = {label for info in infos for label in _labels(info, metric)}
    absent = [name for i, name in enumerate(classes) if i not in present]
    if absent and len(absent) < len(classes):
        alone = ', and 0 for others that are predicted' if metric == PANOPTIC else ' alone'
        warn_in_red(f'{metric} of the {what} gives the mean of {len(classes) - len(absent)} classes{alone}: its data '
                    f'have no object of {_some_of(absent, classes)}.')


def _labels(info: dict, metric: str) -> Iterator[int]:
    """Of the objects that count, in panoptic data also those of stuff."""
    if metric == PANOPTIC:
        return (each['category'] for each in info.get('segments_info', ()))
    return (each['bbox_label'] for each in info.get('instances', ()) if not each.get('ignore_flag')
            and 'bbox_label' in each)


def tell_unnamed(dataset: Any, what: str) -> None:
    """Warn in red of objects in XML files, as of VOC, whose names the classes lack: mmdet passes them over.

    So it does with pictures by ``filter_cfg``, of which a validation says nothing then.

    Args:
        dataset: of mmdet; others than of XML files are passed over, and those that have them elsewhere, as
            WIDERFaceDataset. Of a large one some files are looked at.
        what: 'train', 'validation' or 'test'.
    """
    of_xml: Any = next((base for base in type(dataset).__mro__ if base.__name__ == 'XMLDataset'), None)
    if not of_xml or not reads_as_mm(type(dataset)) or type(dataset).load_data_list is not of_xml.load_data_list:
        return
    names, unnamed = set(names_of(dataset) or ()), Counter()
    images = list_from_file(dataset.ann_file, backend_args=dataset.backend_args)
    left_out = len(images) - len(dataset)
    if what != 'train' and left_out > 0 and dataset.filter_cfg and not dataset.test_mode:
        warn_in_red(f'{type(dataset).__name__} of the {what} leaves out {left_out} of {len(images)} pictures (by '
                    'filter_cfg), and what is found there by mistake does not count. With test_mode=True it leaves out '
                    'none.')
    for image in images[::-(-len(images) // LOOKED_AT) or 1]:
        text = get(os.path.join(dataset.sub_data_root, dataset.ann_subdir, f'{image}.xml'),
                   backend_args=dataset.backend_args)
        unnamed.update(name for each in ElementTree.fromstring(text).findall('object')
                       if (name := each.findtext('name')) not in names)
    if unnamed:
        many = some(f'{name!r} ({count})' for name, count in unnamed.most_common())
        warn_in_red(f'{type(dataset).__name__} of the {what} leaves out objects that its classes do not name: {many}. '
                    'If they are of a class, write its name as they do.')


def tell_limits(infos: Sequence[dict], model: dict, what: str) -> None:
    """Warn in red of a ``max_per_img`` in a model's config with which the objects of a picture cannot all be found."""
    most = max((sum(not each.get('ignore_flag') for each in info.get('instances', ())) for info in infos), default=0)
    for path, part in dicts_with(model, 'max_per_img'):
        limit = part['max_per_img']
        if 'test_cfg' in path and isinstance(limit, int) and 0 < limit < min(most, COUNTED):
            warn_in_red(f'model.{path}.max_per_img={limit} leaves out objects: a picture of the {what} has {most}.')


def _some_of(absent: Sequence, names: Sequence) -> str:
    return f'{len(absent)} of {len(names)} classes ({"number " if isinstance(names, range) else ""}{some(absent)})'
