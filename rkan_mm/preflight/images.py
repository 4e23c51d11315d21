"""Pictures of a data set, looked at without being decoded: missing, truncated, turned or of another size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.logging import MMLogger
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.spread import spread

from .config import is_mm, reads_as_mm
from .faults import Faults
from .red import warn_in_red

ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND'}  # of JPEG and PNG files, by how they begin
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
READERS = ('cv2', 'pillow', 'turbojpeg', None)  # of image files, as whose size and orientation those of the file count
PICTURES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp', '.gif', '.avif', '.jp2', '.heic')
"""How names of pictures end."""

LOOKED_AT = 5000
"""Images of a data set for classification, at most, that are looked at."""

TO_ONE_SIZE = ('RandomResizedCrop', 'EfficientNetRandomCrop', 'EfficientNetCenterCrop')
"""Steps that give one size, whatever the picture's; Resize and crops do as they are set."""

KEEPING = ('RandomFlip', 'ColorJitter', 'Lighting', 'RandomGrayscale', 'GaussianBlur', 'RandomErasing', 'AutoAugment',
           'RandAugment', 'NumpyToPIL', 'PILToNumpy', 'PackInputs', 'PackMultiTaskInputs')
"""Steps that leave the size as it is."""

SIZES_TRIED = 8
"""Pictures, evenly spread over a data set, that go through its pipeline to see whether they make a batch."""


def reading(color_type: str = 'color', imdecode_backend: str | None = 'cv2') -> Callable[[bytes], Any]:
    """What a step that loads pictures makes an array of their bytes by; it takes the arguments of that step."""
    from mmcv import imfrombytes
    return partial(imfrombytes, flag=color_type, backend=imdecode_backend)


def check_images(where: str, folder: str, images: list[dict], turned: bool = True,
                 read: Callable[[bytes], Any] | None = None, some_absent: bool = False) -> None:
    """Look at the first and last bytes of each image, and at all of it when in doubt.

    Args:
        where: name of the json, for messages.
        folder: where the images lie.
        images: ``file_name``, ``height`` and ``width`` of each, as in a COCO json.
        turned: whether images are loaded as their EXIF orientation says.
        read: see `look_at`.
        some_absent: whether the run passes over images that are not there, or empty files.

    Raises:
        PreflightError: an image is missing, truncated, no picture, or of another size.
    """
    faults = Faults(where, 'images')
    paths = [Path(folder) / image['file_name'] for image in images]
    absent = _absent(paths, some_absent)
    passed_over = some_absent and not absent.issuperset(paths)
    for path in (path for path in paths if path in absent):
        if passed_over:
            faults.note('images are not there, or empty, and passed over (ignore_empty=True)', path)
        else:
            faults.add(f'is not there, of {len(paths)} images', str(path), 'check data_prefix and file_name')
    present = [(path, image) for path, image in zip(paths, images, strict=True) if path not in absent]
    looks = _look_at_all([path for path, _ in present], read)
    for (path, image), look in zip(present, looks, strict=True):
        if look is None:
            faults.add(f'is truncated or no picture, of {len(paths)} images', str(path), _cure(path))
            continue
        width, height, orientation = look
        loaded = (height, width) if turned and orientation in SIDEWAYS else (width, height)
        named = (image['width'], image['height'])
        if loaded != named and named == (width, height):
            faults.add("is turned by its EXIF orientation when it is loaded, and its json's size is not", f'{path} '
                       f'({loaded[0]}x{loaded[1]}, not {named[0]}x{named[1]})', 'annotate the turned picture, or load '
                       "it as it lies by LoadImageFromFile(color_type='color_ignore_orientation')")
        elif loaded != named:
            faults.add("has another size than its json says", f'{path} ({loaded[0]}x{loaded[1]}, not '
                       f'{named[0]}x{named[1]})', 'write width and height of the file into the json, and look whether '
                       'its boxes are of this file')
        elif turned and orientation not in (0, 1, *SIDEWAYS):
            faults.note('images are turned or mirrored by their EXIF orientation when they are loaded; look whether '
                        'their boxes are, too', path)
    faults.stop()
    for line in faults.notes():
        MMLogger.get_current_instance().warning(f'{where}: {line}')


def check_pictures(dataset: Any, what: str, maps_alone: bool = False) -> None:
    """Look at the image files of a data set that is built, of a large one at some, evenly spread.

    Where the labels of pixels are loaded, their files belong to them.

    Args:
        dataset: as mm or we read it; those of code of the user's own are left alone, and so are images in memory or
            behind a backend.
        what: of the run, for messages.
        maps_alone: look at the files with the labels of pixels, and not at the pictures.

    Raises:
        PreflightError: an image is missing, truncated or no picture.
    """
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    reads = [step for step in steps if type(step).__name__ == 'LoadImageFromFile' and is_mm(type(step))
             and not getattr(step, 'backend_args', None) and getattr(step, 'imdecode_backend', 'cv2') in READERS]
    labelled = any(getattr(step, 'with_seg', False) for step in steps)
    info_of = getattr(dataset, 'get_data_info', None) or getattr(
        getattr(dataset, 'data_list', None), '__getitem__', None)  # of MultiTaskDataset
    if not reads or info_of is None or not reads_as_mm(type(dataset)) or (maps_alone and not labelled):
        return
    read = reading(getattr(reads[0], 'color_type', 'color'), getattr(reads[0], 'imdecode_backend', 'cv2'))
    some_absent = what == 'train' and getattr(reads[0], 'ignore_empty', False)
    infos = [info_of(i) for i in spread(len(dataset), LOOKED_AT)]
    pictures = {} if maps_alone else _paths(infos, 'img_path')
    maps = _paths(infos, 'seg_map_path') if labelled else {}
    paths = [*{**pictures, **maps}]
    faults = Faults(f'{type(dataset).__name__} of the {what}', 'images')
    absent = _absent(paths, some_absent)
    passed_over = some_absent and not absent.issuperset(paths)
    others = {folder: {name.stem: name.suffix for name in folder.glob('*') if name.suffix.lower() in PICTURES}
              for folder in {path.parent for path in absent}}
    for path in (path for path in paths if path in absent):
        if passed_over:
            faults.note('images are not there, or empty, and passed over (ignore_empty=True)', path)
        elif (extension := others[path.parent].get(path.stem)) not in (None, path.suffix):
            faults.add(f'is not there, but with the extension {extension}', str(path), 'write it so in the ann_file; '
                       'of XML files mm reads pictures with the extension .jpg alone')
        else:
            faults.add('is not there', str(path), 'check data_prefix and ann_file')
    looks: dict[Path, Any] = {}
    for group, how in (maps, None), (pictures, read):
        present = [path for path in group if path not in absent]
        looks.update(zip(present, _look_at_all(present, how), strict=True))
    for path, look in looks.items():
        if look is None:
            faults.add('is truncated or no picture', str(path), _cure(path))
    faults.stop()
    for line in faults.notes():
        MMLogger.get_current_instance().warning(f'{faults.where}: {line}')
    _tell_sizes([(path, info, look) for path, info in pictures.items() if (look := looks.get(path))], reads[0], what)


def _absent(paths: list[Path], or_empty: bool) -> set[Path]:
    """Those that are not in their folders, which are read once each; where it is asked for, also empty files."""
    folders = {path.parent for path in paths}
    there = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    return {path for path in paths if path.name not in there[path.parent]
            or (or_empty and not (path.exists() and path.stat().st_size))}


def _cure(path: Path) -> str:
    """What to do with a file that cannot be loaded, though Pillow may know its format."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return 'get it anew, or take it out'
    return (f'it is {image.format} of the mode {image.mode}, which the pipeline does not read: write it as PNG or JPEG '
            'of 8 bits')


def _paths(infos: list[dict], key: str) -> dict[Path, dict]:
    return {Path(name): info for info in infos if (name := str(info.get(key) or '')) and '://' not in name}


def _tell_sizes(pictures: list[tuple[Path, dict, tuple[int, int, int]]], step: Any, what: str) -> None:
    """Warn in red of pictures whose annotations, as of an XML file, are of another size than what is loaded."""
    turns = getattr(step, 'color_type', 'color') in ('color', 'grayscale') and step.imdecode_backend != 'turbojpeg'
    odd = {}
    for path, info, (width, height, orientation) in pictures:
        turned = turns and orientation in SIDEWAYS
        loaded, named = (height, width) if turned else (width, height), (info.get('width'), info.get('height'))
        if all(named) and named != loaded:
            odd[path] = f'{path} ({loaded[0]}x{loaded[1]}' + (', turned by its EXIF orientation' if turned else '') + (
                f', not {named[0]}x{named[1]})')
    if odd:
        warn_in_red(f'{len(odd)} of {len(pictures)} pictures of the {what} that were looked at are loaded in another '
                    f'size than their annotations say, such as {next(iter(odd.values()))}: look whether their boxes '
                    'are of the pictures as they are loaded. '
                    "LoadImageFromFile(color_type='color_ignore_orientation') turns none.")


def _look_at_all(paths: list[Path], read: Callable[[bytes], Any] | None) -> list[tuple[int, int, int] | None]:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # no picture is too large here
    try:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(partial(look_at, read=read), paths))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def look_at(path: Path, read: Callable[[bytes], Any] | None = None) -> tuple[int, int, int] | None:
    """Width, height and EXIF orientation (of JPEG; else 0) of an image; None if it is truncated or none.

    ``read`` makes an array of a file's bytes, as the pipeline will: it reads formats other than JPEG and PNG, which
    Pillow may know better.
    """
    try:
        with path.open('rb') as file, Image.open(file) as image:
            orientation = image.getexif().get(ORIENTATION, 0) if image.format == 'JPEG' else 0
            size = image.size
            file.seek(0)
            start = file.read(2)
            file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
            if start in ENDS and ENDS[start] in file.read():
                return *size, orientation
        if read is not None and start not in ENDS:
            return None if read(path.read_bytes()) is None else (*size, orientation)
        with Image.open(path) as image:
            image.load()
        return *size, orientation
    except UnidentifiedImageError:  # a format that OpenCV may know
        picture = cv2.imread(str(path))
        return None if picture is None else (*picture.shape[1::-1], 0)
    except (OSError, SyntaxError, ValueError, cv2.error):
        return None


def check_sizes(loader: DataLoader, what: str) -> None:
    """Raise `PreflightError` if pictures come out of a pipeline in sizes that make no batch.

    A few that are evenly spread are tried, and of files on the disk one of each of the rarest sizes, unless the
    pipeline makes all alike.
    """
    name = getattr(getattr(loader.collate_fn, 'func', loader.collate_fn), '__name__', '')
    if name != 'default_collate' or (loader.batch_size or 1) < 2:
        return
    sizes: dict[tuple, str] = {}
    try:
        for place in (*spread(len(loader.dataset), SIZES_TRIED), *_of_rare_sizes(loader.dataset)):
            sample = loader.dataset[place]
            if isinstance(sample['inputs'], torch.Tensor):
                sizes.setdefault(tuple(sample['inputs'].shape), getattr(sample.get('data_samples'), 'img_path', ''))
    except Exception:  # the run will tell
        return
    if len(sizes) > 1:
        told = ' and '.join(f'{size} ({path})' if path else f'{size}' for size, path in [*sizes.items()][:2])
        raise PreflightError(f'The pipeline of the {what} gives pictures of several sizes, such as {told}, which make '
                             'no batch: end it by a step to one size, as Resize(scale=224) or CenterCrop(crop_size='
                             '224), or set batch_size=1. To run all the same: --cfg-options preflight.trial=False')


def _makes_alike(steps: Sequence[Any]) -> bool:
    """Whether a pipeline gives one size whatever the picture's, as far as its steps are known."""
    last = next((i for i in reversed(range(len(steps))) if type(steps[i]).__name__ not in KEEPING), None)
    if last is None or not all(is_mm(type(step)) for step in steps[last:]):
        return False
    step, name = steps[last], type(steps[last]).__name__
    if name == 'Resize':
        return step.scale is not None and not step.keep_ratio
    if name not in ('CenterCrop', 'RandomCrop'):
        return name in TO_ONE_SIZE
    least = 0  # of a side; a crop leaves smaller pictures as they are
    if last and type(before := steps[last - 1]).__name__ == 'ResizeEdge' and before.edge == 'short':
        least = before.scale
    return getattr(step, 'auto_pad', False) or getattr(step, 'pad_if_needed', False) or least >= max(step.crop_size)


def _of_rare_sizes(dataset: Any) -> list[int]:
    """Places of pictures on the disk, one of each size, the rarest sizes alone; none where the pipeline is enough."""
    from .datasets import parts_of
    if not hasattr(dataset, 'get_data_info') or all(
            _makes_alike(getattr(getattr(part, 'pipeline', None), 'transforms', ())) for part in parts_of(dataset)):
        return []
    found = {Path(path): i for i in spread(len(dataset), LOOKED_AT)
             if isinstance(path := dataset.get_data_info(i).get('img_path'), str)}
    places: dict[tuple, list[int]] = {}
    for place, look in zip(found.values(), _look_at_all([*found], None), strict=True):
        if look is not None:
            places.setdefault(look, []).append(place)
    return [each[0] for each in sorted(places.values(), key=len)[:SIZES_TRIED]]
