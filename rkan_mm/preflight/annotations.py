"""One pass over the json of a COCO data set, before a run reads it: every fault with those who have it and the cure."""

from __future__ import annotations

import codecs
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from mmengine.fileio import get
from mmengine.logging import MMLogger

from rkan_mm.engine.run_error import PreflightError

from .boxes import Boxes
from .faults import Faults
from .images import check_images

CURES = {  # of a key that an annotation lacks
    'id': 'number the annotations from 1',
    'image_id': 'write the id of its image',
    'category_id': 'write the id of its category',
    'bbox': 'write [x, y, width, height] in pixels',
    'area': 'write the area of the object in pixels, or width * height of its box',
    'iscrowd': "COCO's evaluation reads it: write 0, or 1 for a crowd",
    'segmentation': 'masks are asked for: write polygons or RLE, or leave masks out of the pipelines and evaluators',
}


ON_PURPOSE = ' To run all the same: --cfg-options preflight.annotations=False'


def check_annotations(ann_file: str, image_dir: str | None, classes: Sequence[str], allow_unknown: bool = False,
                      evaluated: bool = True, masks: bool = True, trained: bool = True, ordered: bool = True,
                      filter_cfg: dict | None = None, turned: bool = True, backend_args: dict | None = None,
                      labelled: bool = False, read: Callable[[bytes], Any] | None = None,
                      some_absent: bool = False) -> None:
    """Read a COCO json file once and look at its images; what mmdet would pass over in silence is logged.

    Args:
        ann_file: json file of instances.
        image_dir: where its images lie; None does not look at them.
        classes: names in the data set's metainfo.
        allow_unknown: whether categories may be annotated that are not among the classes.
        evaluated: whether COCO's evaluation will read it.
        masks: whether a pipeline or an evaluator asks for masks.
        trained: whether a model is to learn from it.
        ordered: whether the categories must come in the order of the classes.
        filter_cfg: what mmdet filters images by.
        turned: whether images are loaded as their EXIF orientation says, as mmcv does unless told otherwise.
        backend_args: of the data set, for ``ann_file``.
        labelled: whether a pipeline or a metric reads its annotations, so that without any it is of no use.
        read, some_absent: see `check_images`.

    Raises:
        PreflightError: the file is no COCO json; a class is not in it or in another place; annotations or images lack
            what the run needs, or have what cannot be; nothing is left after the filters; images are missing, torn or
            of other sizes.
    """
    content = _read(ann_file, backend_args)
    faults = Faults(ann_file)
    images = _index(content['images'], ('id', 'file_name', 'height', 'width'), 'image', faults)
    categories = _index(content['categories'], ('id', 'name'), 'category', faults)
    faults.stop()  # what follows needs them
    _check_classes(ann_file, [category['name'] for category in categories.values()], classes, ordered)
    names = {key: category['name'] for key, category in categories.items()}
    known, unknown, usable, annotated, boxes = set(classes), Counter(), set(), set(), Boxes()
    annotations, ids, counted = content.get('annotations', []), Counter(), 0
    for annotation in annotations:
        if not isinstance(annotation, dict):
            faults.add('is no dict of an annotation', repr(annotation)[:40], 'take it out')
            continue
        if isinstance(annotation.get('id'), Hashable):
            ids[annotation.get('id')] += 1
        name = names.get(key) if isinstance(key := annotation.get('category_id'), Hashable) else None
        wanted = name in known or 'category_id' not in annotation
        if not wanted:
            unknown[name or f'number {key!r}'] += 1
        image = images.get(key) if isinstance(key := annotation.get('image_id'), Hashable) else None
        where = f'annotation {annotation.get("id", "without id")}' + (f' of {image["file_name"]}' if image else '')
        found = False
        for fault, detail, cure in _faults_of(annotation, image, evaluated and wanted, masks and wanted):
            found = True
            faults.add(fault, f'{where}{detail}', cure)
        if found or image is None or not wanted:
            continue
        annotated.add(annotation['image_id'])
        *_, width, height = annotation['bbox']
        boxes.add(annotation, image)
        counted += not annotation.get('iscrowd')
        if annotation.get('ignore'):
            faults.note("have ignore=1 and are not trained on; COCO's evaluation counts them all the same",
                        annotation.get('id'))
            continue
        if width < 1 or height < 1 or annotation['area'] <= 0:
            faults.note('boxes are without area or below a pixel and are not trained on', annotation.get('id'))
        elif _outside(annotation['bbox'], image):
            faults.note('boxes lie wholly outside their images, are not trained on, and count as missed in evaluation',
                        annotation.get('id'))
        elif not annotation.get('iscrowd'):
            usable.add(annotation['image_id'])
    if double := [key for key, count in ids.items() if count > 1 and key is not None]:
        for key in double:
            faults.add('share an id, and mmdet stops at that', f'annotation {key}', 'number them anew from 1')
    if evaluated and any(key == 0 and key is not False for key in ids):
        faults.add("has the id 0, with which COCO's evaluation counts what matches it as missed", 'an annotation',
                   'number them from 1')
    if evaluated and (texts := [key for key in ids if isinstance(key, str) and not _reads_as_number(key)]):
        for key in texts:
            faults.add("has an id that is no number, and COCO's evaluation stops at the first that is found",
                       f'annotation {key!r}', 'number them from 1')
    twice = Counter(image['file_name'] for image in images.values())
    for name in [name for name, count in twice.items() if count > 1]:
        faults.note('files are listed more than once, and count as often', name)
    boxes.judge(faults, evaluated)
    if unknown and not allow_unknown:
        many = ', '.join(f'{name!r} ({count})' for name, count in unknown.most_common(5))
        faults.say(f'annotations are of categories that metainfo.classes of the config do not name: {many}. Without '
                   'them on purpose: --cfg-options preflight.allow_unknown=True')
    faults.stop()
    for line in faults.notes():
        MMLogger.get_current_instance().warning(f'{ann_file}: {line}')
    left = _filtered(images, annotated, filter_cfg or {})
    if trained and not left and (usable or not labelled):
        raise PreflightError(f'{ann_file}: none of its {len(images)} images is left after filter_cfg={filter_cfg}; '
                             'lower min_size, or keep images without objects by filter_empty_gt=False')
    if trained and (annotations or labelled) and not usable & left:
        raise PreflightError(f'{ann_file}: none of its {len(images)} images has an annotated object to learn from.'
                             + (ON_PURPOSE if labelled else ''))
    if evaluated and labelled and not counted:
        raise PreflightError(f'{ann_file}: none of its {len(images)} images has an annotated object that COCO\'s '
                             f'evaluation counts, and each AP would be -1.{ON_PURPOSE}')
    if not annotations:
        MMLogger.get_current_instance().warning(f'{ann_file} has no annotations: nothing can be learned from it but '
                                                'without labels')
    if image_dir is not None:
        check_images(ann_file, image_dir, [images[key] for key in images if key in left], turned, read,
                     some_absent)


def _read(ann_file: str, backend_args: dict | None) -> dict[str, Any]:
    try:
        text = get(ann_file, backend_args=backend_args)
        if text.startswith(codecs.BOM_UTF8):
            raise PreflightError(f'{ann_file} begins with a byte order mark, which mmdet does not read: save it as '
                                 'UTF-8 without BOM')
        content = json.loads(text)
        content['images'], content['categories']
        for part in ('images', 'annotations', 'categories'):
            if not isinstance(content.get(part, []), list):
                raise TypeError(f'its {part!r} is no list')
    except (ValueError, KeyError, TypeError) as error:
        raise PreflightError(f'{ann_file} is no COCO json of instances: {type(error).__name__} {error}') from error
    return content


def _index(entries: list, keys: tuple[str, ...], what: str, faults: Faults) -> dict:
    """The entries by id; those that lack a key, have a wrong type or an id twice are faults."""
    found = {}
    for i, entry in enumerate(entries):
        where = f'{what} {entry.get("file_name", entry.get("id", i)) if isinstance(entry, dict) else i}'
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            faults.add(f'has no {" and no ".join(missing)}', where, 'write it into the json')
        elif not isinstance(entry['id'], Hashable) or entry['id'] in found:
            faults.add(f'has the id of another {what}', where, 'give each its own id')
        elif not isinstance(entry[keys[1]], str):
            faults.add(f'has a {keys[1]} that is no text', where, 'write it in quotes')
        elif not all(isinstance(entry[key], (int, float)) and entry[key] > 0 for key in keys[2:]):
            faults.add('has a height and width that cannot be', f'{where}: {[entry[key] for key in keys[2:]]}',
                       'write both in pixels')
        else:
            found[entry['id']] = entry
    return found


def _check_classes(ann_file: str, there: list[str], classes: Sequence[str], ordered: bool) -> None:
    """Labels are numbered in the order of the json and named in that of the metainfo: they must agree."""
    if missing := sorted(set(classes) - set(there)):
        raise PreflightError(f'{ann_file} has no category {some(missing)}, which metainfo.classes of the config name; '
                             f'it has {some(sorted(there))}')
    order = [name for name in there if name in set(classes)]
    if double := sorted(name for name, count in Counter(order).items() if count > 1):
        raise PreflightError(f'{ann_file} has two categories of one name, {some(double)}: give each another name, or '
                             'both one id')
    if ordered and order != list(classes):
        raise PreflightError(
            f'{ann_file} lists its categories as {some(order)}, metainfo.classes as {some(classes)}: mmdet numbers '
            'labels as the json does and names them as metainfo does. Write metainfo.classes, of train, val and test, '
            'in the order of the json, or order the json. To run all the same: --cfg-options preflight.classes=False')


def _faults_of(annotation: dict, image: dict | None, evaluated: bool, masks: bool) -> Iterator[tuple[str, str, str]]:
    """Fault, detail and cure of what an annotation lacks or has wrongly."""
    needed = ('id', 'image_id', 'category_id', 'bbox', 'area', *(('iscrowd',) if evaluated else ()),
              *(('segmentation',) if masks else ()))
    for key in needed:
        if annotation.get(key) is None:
            yield f'lacks {key}', '', CURES[key]
    if image is None and annotation.get('image_id') is not None:
        yield ('is of an image that the file does not list', f' (image {annotation["image_id"]!r})',
               'list the image, under the same id')
    if (box := annotation.get('bbox')) is not None and not (
            isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0):
        yield 'is no box x, y, width, height', f': {box}', CURES['bbox']
    if (area := annotation.get('area')) is not None and not _is_number(area):
        yield 'has an area that is no number', f' (area {area!r})', CURES['area']
    if annotation.get('iscrowd', 0) not in (0, 1, None):
        yield 'has an iscrowd that is neither 0 nor 1', f' (iscrowd {annotation["iscrowd"]!r})', CURES['iscrowd']
    shape = annotation.get('segmentation')
    if not masks or shape is None:
        return
    if isinstance(shape, dict):
        if image is not None and not _fits(shape, [image['height'], image['width']]):
            yield ('has an RLE that is not of its image',
                   f' (RLE of {shape.get("size")}, image of {[image["height"], image["width"]]})',
                   'write size=[height, width] and counts that fill it')
    elif not isinstance(shape, list) or not shape or not all(map(_is_polygon, shape)):
        yield ('has no polygon, or one of less than three points', f' ({str(shape)[:60]})',
               'write [[x1, y1, x2, y2, x3, y3, ...]], or take that part out')


def _is_polygon(part: object) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(_is_number, part))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _fits(rle: dict, size: list[int]) -> bool:
    counts = rle.get('counts')
    if list(rle.get('size') or ()) != size or not isinstance(counts, (list, str)):
        return False
    return isinstance(counts, str) or (all(map(_is_number, counts)) and sum(counts) == size[0] * size[1])


def _outside(box: list[float], image: dict) -> bool:
    x, y, width, height = box
    return x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0


def _filtered(images: dict, labelled: set, filter_cfg: dict) -> set:
    """Ids of the images that mmdet's filter leaves."""
    least, empty = filter_cfg.get('min_size', 0), filter_cfg.get('filter_empty_gt', False)
    return {key for key, image in images.items() if min(image['height'], image['width']) >= least
            and (not empty or key in labelled)}


def some(values: Iterable) -> str:
    values = list(map(str, values))
    return ', '.join(values[:5]) + (f', ... ({len(values)})' if len(values) > 5 else '')
