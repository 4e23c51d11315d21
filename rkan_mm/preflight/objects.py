"""Objects of detectors' data of all kinds, as mmdet has read them: labels, boxes and masks that come to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.spread import spread

from .annotations import ON_PURPOSE, some
from .config import is_mm, reads_as_mm
from .datasets import names_of, parts_of, reads_coco
from .faults import Faults
from .images import LOOKED_AT
from .red import warn_in_red

IGNORED = 255
"""The label of pixels that losses of mm's configs pass over; where one passes over another, that is left out, too."""

MAPS_LOOKED_AT = 200
"""Maps with labels of pixels of a data set, at most, that are read."""


def check_objects(dataset: Any, what: str, by_labels: bool = True) -> None:
    """Look at the labels, boxes and masks of a data set that is built, of a large one at some, evenly spread.

    Args:
        dataset: of a detector; parts that find theirs by code of the user's own are left alone.
        what: ``'train'``, ``'validation'`` or ``'test'``.
        by_labels: whether the detector goes by the labels; one of regions alone takes any.

    Raises:
        PreflightError: an object has a label out of range; in training, no object is left to learn from.
    """
    parts = [part for part in parts_of(dataset)
             if reads_as_mm(type(part)) and hasattr(part, 'get_data_info') and len(part)]
    for part in parts:
        if not reads_coco(type(part)):  # its json has been looked at
            objects = list(_objects(part, spread(len(part), LOOKED_AT)))
            if by_labels:
                _check_labels(type(part).__name__, objects, names_of(part), what)
            _tell_boxes(type(part).__name__, objects, what)
    learned = [part for part in parts if what == 'train' and _steps(part) and 'instances' in (
        info := part.get_data_info(0)) and 'segments_info' not in info]
    for part in learned:
        _tell_masks(part)
    if learned and not any(_is_taken(instance, steps) for part in learned for steps in [_steps(part)]
                           for _, instance in _objects(part, range(len(part)))):
        there = any(any(_objects(part, range(len(part)))) for part in learned)
        raise PreflightError(f'{type(learned[0]).__name__} of the train: ' + (
            f'{_of_polygons("each object")}' if there else
            f'none of its {sum(map(len, learned))} pictures has an annotated object to learn from.') + ON_PURPOSE)


def _objects(dataset: Any, places: Iterable[int]) -> Iterator[tuple[dict, dict]]:
    """The objects that count, each behind its picture."""
    for place in places:
        info = dataset.get_data_info(place)
        for instance in info.get('instances', ()):
            if not instance.get('ignore_flag'):
                yield info, instance


def _check_labels(name: str, objects: list[tuple[dict, dict]], classes: tuple[str, ...] | None, what: str) -> None:
    if not classes:
        return
    odd = [(info, label) for info, instance in objects
           if isinstance(label := instance.get('bbox_label'), (int, np.integer)) and not 0 <= label < len(classes)]
    if odd:
        (info, label), pictures = odd[0], {str(info.get('img_path')) for info, _ in odd}
        raise PreflightError(f'{name} of the {what}: {info.get("img_path")} has an object of the label {label}, and '
                             f'there are {len(classes)} classes ({some(classes)}), with the labels 0 to '
                             f'{len(classes) - 1} ({len(pictures)} images).{ON_PURPOSE}')


def _tell_boxes(name: str, objects: list[tuple[dict, dict]], what: str) -> None:
    boxes = [(box, info) for info, instance in objects if len(box := instance.get('bbox', ())) == 4]
    if odd := [f'{list(box)} of {info.get("img_path")}' for box, info in boxes
               if not (box[2] > box[0] and box[3] > box[1])]:
        warn_in_red(f'{len(odd)} of {len(boxes)} boxes in {name} of the {what} have no width or no height, such as '
                    f'{odd[0]}: mmdet reads them as corners x1, y1, x2, y2.')


def _tell_masks(dataset: Any) -> None:
    steps = _steps(dataset)
    if not any(map(_takes_polygons, steps)):
        return
    taken = [_is_taken(instance, steps) for _, instance in _objects(dataset, spread(len(dataset), LOOKED_AT))]
    if any(taken) and not all(taken):
        warn_in_red(f'{type(dataset).__name__} of the train: '
                    + _of_polygons(f'{taken.count(False)} of {len(taken)} objects'))


def _of_polygons(who: str) -> str:
    return (f'{who} would be left out, as LoadAnnotations(poly2mask=False) takes polygons alone and the mask is RLE: '
            'set poly2mask=True.')


def _is_taken(instance: dict, steps: list) -> bool:
    return not isinstance(instance.get('mask'), dict) or not any(map(_takes_polygons, steps))


def _takes_polygons(step: Any) -> bool:
    return bool(getattr(step, 'with_mask', False)) and not getattr(step, 'poly2mask', True)


def check_maps(model: Any, dataset: Any, what: str) -> None:
    """Look at the labels of pixels that a semantic head learns from, in some maps, evenly spread.

    Args:
        model: whose heads are looked at; without one of mm's that has labels of pixels, nothing is.
        dataset: that has been built.
        what: ``'train'``, ``'validation'`` or ``'test'``.

    Raises:
        PreflightError: a map has a label that the head has no class for, at which a training ends in its midst, or
            colours in the place of labels.
    """
    head = next((head for part in (model, getattr(model, 'roi_head', None)) for name in ('semantic_head', 'decode_head')
                 if (head := getattr(part, name, None)) is not None and is_mm(type(head))), None)
    number: Any = getattr(head, 'num_things_classes', 0) + getattr(head, 'num_stuff_classes', 0) or getattr(
        head, 'num_classes', None)
    loss = getattr(head, 'criterion', getattr(head, 'loss_seg', None))
    ignored = {label for each in (loss, head) if isinstance(label := getattr(each, 'ignore_index', None), int)}
    for part in parts_of(dataset) if isinstance(number, int) else ():
        loading = [step for step in _steps(part) if getattr(step, 'with_seg', False)]
        if loading and reads_as_mm(type(part)):
            _check_map_labels(part, loading[0], max(number, 2), ignored, what)


def _check_map_labels(dataset: Any, step: Any, number: int, ignored: set[int], what: str) -> None:
    faults, found = Faults(f'{type(dataset).__name__} of the {what}'), set()
    shown = next((label for label in ignored if label >= 0), IGNORED)
    for place in spread(len(dataset), MAPS_LOOKED_AT):
        info = {**dataset.get_data_info(place), 'seg_fields': []}
        step._load_seg_map(info)
        path, labels = info.get('seg_map_path'), info.get('gt_seg_map')
        if labels is None:
            continue
        if labels.ndim != 2:
            faults.add('has colours, and labels of pixels are one number for each', str(path), 'write it as a grey '
                       "PNG, or, if it has a palette, read it by LoadAnnotations(imdecode_backend='pillow')")
            continue
        here = set(np.unique(labels).tolist()) - {IGNORED, *ignored, getattr(step, 'ignore_index', IGNORED)}
        found |= here
        if odd := sorted(label for label in here if not 0 <= label < number):
            faults.add(f'has pixels of labels that the head has no class for; it has 0 to {number - 1}',
                       f'{path} ({some(odd)})', f'write others, or {shown} for what is ignored')
    faults.stop()
    if found == {0}:
        warn_in_red(f'The maps of {type(dataset).__name__} of the {what} that were looked at have pixels of the label '
                    f'0 alone, beside {shown}, which is ignored. Where {shown} stands for a class, write 1.')


def _steps(dataset: Any) -> list:
    """Those of mmdet that load objects."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return [step for step in steps if type(step).__name__ == 'LoadAnnotations' and is_mm(type(step))]
