"""One pass over the annotations of a COCO data set, before a run trains on them."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmengine.logging import MMLogger
from PIL import Image

from rkan_mm.engine.run_error import PreflightError

ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND'}  # of JPEG and PNG files, by how they begin


def check_annotations(ann_file: str, image_dir: str, classes: Sequence[str], allow_unknown: bool = False) -> None:
    """Read a COCO json file once and look at its images' ends; what mmdet would pass over in silence is logged.

    Args:
        ann_file: json file of instances.
        image_dir: where its images lie.
        classes: names in the data set's metainfo.
        allow_unknown: whether categories may be annotated that are not among the classes.

    Raises:
        PreflightError: the file is no COCO json; a class is not in it, an annotation is of a category that is not
            among the classes, of an image or category that is not there, or has a box or an RLE that cannot be; there
            is nothing to learn from; an image is missing or torn.
    """
    try:
        content = json.loads(Path(ann_file).read_bytes())
        images = {image['id']: image for image in content['images']}
        names = {category['id']: category['name'] for category in content['categories']}
        annotations = content['annotations']
    except (ValueError, KeyError, TypeError) as error:
        raise PreflightError(f'{ann_file} is no COCO json of instances: {type(error).__name__} {error}') from error
    if missing := sorted(set(classes) - set(names.values())):
        raise PreflightError(f'{ann_file} has no category {_some(missing)}, which metainfo.classes of the config name; '
                             f'it has {_some(sorted(names.values()))}')
    unknown, flat, usable = Counter(), [], set()
    for annotation in annotations:
        image, name = images.get(annotation['image_id']), names.get(annotation['category_id'])
        where = f'{ann_file}: annotation {annotation.get("id")}'
        if image is None:
            raise PreflightError(f'{where} is of image {annotation["image_id"]}, which the file does not list')
        if name not in classes:
            unknown[name or f'number {annotation["category_id"]}'] += 1
            continue
        *_, width, height = box = annotation['bbox']
        if len(box) != 4 or not all(map(math.isfinite, box)) or width < 0 or height < 0:
            raise PreflightError(f'{where} of {image["file_name"]}: {box} is no box x, y, width, height')
        if width < 1 or height < 1 or annotation.get('area', 1) <= 0:
            flat.append(annotation.get('id'))
        elif not annotation.get('iscrowd'):
            usable.add(annotation['image_id'])
        rle = annotation.get('segmentation')
        if isinstance(rle, dict):
            _check_rle(rle, [image['height'], image['width']], f'{where} of {image["file_name"]}')
    if unknown and not allow_unknown:
        many = ', '.join(f'{name!r} ({count})' for name, count in unknown.most_common(5))
        raise PreflightError(f'{ann_file}: annotations are of categories that metainfo.classes of the config do not '
                             f'name: {many}. Without them on purpose: --cfg-options preflight.allow_unknown=True')
    if flat:
        MMLogger.get_current_instance().warning(
            f'{ann_file}: {len(flat)} boxes are without area or below a pixel and are not trained on: {_some(flat)}')
    if not usable:
        raise PreflightError(f'{ann_file}: none of its {len(images)} images has an annotated object to learn from')
    _check_images([Path(image_dir) / image['file_name'] for image in images.values()])


def _check_rle(rle: dict, size: list[int], where: str) -> None:
    counts = rle['counts']
    if list(rle['size']) != size or (isinstance(counts, list) and sum(counts) != size[0] * size[1]):
        raise PreflightError(f'{where}: its RLE is of size {rle["size"]}, the image of {size} (height, width)')


def _check_images(paths: list[Path]) -> None:
    """Raise `PreflightError` if one is missing or ends early: its last bytes are read, and all of it when in doubt."""
    folders = {path.parent for path in paths}
    there = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    if missing := [path for path in paths if path.name not in there[path.parent]]:
        raise PreflightError(f'{len(missing)} of {len(paths)} images are not there: {_some(missing)}')
    with ThreadPoolExecutor(16) as pool:
        torn = [path for path, whole in zip(paths, pool.map(_is_whole, paths), strict=True) if not whole]
    if torn:
        raise PreflightError(f'{len(torn)} of {len(paths)} images are torn or no pictures: {_some(torn)}')


def _is_whole(path: Path) -> bool:
    with path.open('rb') as file:
        start = file.read(2)
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
        tail = file.read()
    if start in ENDS and ENDS[start] in tail:
        return True
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def _some(values: Iterable) -> str:
    values = list(map(str, values))
    return ', '.join(values[:5]) + (f', ... ({len(values)})' if len(values) > 5 else '')
