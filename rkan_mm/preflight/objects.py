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
from .images import LOOKED_AT
from .red import warn_in_red


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


def _steps(dataset: Any) -> list:
    """Those of mmdet that load objects."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return [step for step in steps if type(step).__name__ == 'LoadAnnotations' and is_mm(type(step))]
