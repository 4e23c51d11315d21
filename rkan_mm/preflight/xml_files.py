"""XML files of objects, as of VOC, before mmdet reads them: every fault with the files that have it and the cure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmengine.fileio import list_from_file

from .faults import Faults
from .red import warn_in_red

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def check_xml(dataset: dict, cls: Any, classes: Collection[str] | None) -> None:
    """Read the XML files of a data set; what mmdet would stop at, without a word of the file, is said of each.

    Args:
        dataset: its config.
        cls: what that builds. Data sets that read their files otherwise than mmdet's XMLDataset are left alone.
        classes: their names; objects of other names are not read.

    Raises:
        PreflightError: a file is missing or no XML, or has a size or an object that mmdet cannot read.
    """
    if not classes or not _reads_xml(cls) or (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return
    root, prefix = str(dataset.get('data_root') or ''), str((dataset.get('data_prefix') or {}).get('sub_data_root', ''))
    ann_file = str(Path(root, str(dataset.get('ann_file'))))
    if '://' in root + prefix or not Path(ann_file).is_file():
        return
    folder = Path(root, prefix, dataset.get('ann_subdir', 'Annotations'))
    min_size = 0 if dataset.get('test_mode') else (dataset.get('filter_cfg') or {}).get('min_size', 0)
    faults, paths = Faults(ann_file), [folder / f'{name}.xml' for name in list_from_file(ann_file)]
    without_size = []
    with ThreadPoolExecutor(16) as pool:
        for path, read in zip(paths, pool.map(partial(_read, classes=classes), paths), strict=True):
            if isinstance(read, OSError):
                faults.add('cannot be read', f'{path} ({read.strerror})', 'names in the list have no extension and no '
                           'blanks, and ann_subdir is the folder of the files')
                continue
            if isinstance(read, ElementTree.ParseError):
                faults.add('is no XML, or cut off', f'{path} ({read})', 'get it anew, or take its name out of the list')
                continue
            found, sizeless = read
            for fault, cure in found.items():
                faults.add(fault, str(path), cure)
            if sizeless:
                without_size.append(path)
    faults.stop()
    if without_size:
        left_out = f': by filter_cfg.min_size={min_size} their pictures are left out' if min_size > 0 else ''
        warn_in_red(f'{ann_file}: {len(without_size)} of {len(paths)} XML files have a width or height of 0, such as '
                    f'{without_size[0]}{left_out}. Write those of the picture, or leave size out.')


def _reads_xml(cls: Any) -> bool:
    if not isinstance(cls, type) or not any(base.__name__ == 'XMLDataset' for base in cls.__mro__):
        return False
    from mmdet.datasets import XMLDataset
    return issubclass(cls, XMLDataset) and all(getattr(cls, name) is getattr(XMLDataset, name) for name in (
        'load_data_list', 'parse_data_info', '_parse_instance_info'))


def _read(path: Path, classes: Collection[str]) -> tuple[dict[str, str], bool] | OSError | ElementTree.ParseError:
    """Faults of a file with their cures, and whether its width or height is 0; or the error at which reading it ends.

    The tree itself is let go: all files may have been read before the first is told of.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        return error
    return dict(_faults_of(root, classes)), 0 in _numbers(root.find('size'), ('width', 'height'), int)


def _faults_of(root: Any, classes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Fault and cure of what mmdet cannot read."""
    size = root.find('size')
    if size is not None and len(_numbers(size, ('width', 'height'), int)) < 2:
        yield 'has a size without whole numbers as width and height', 'write both in pixels, or leave size out'
    for each in root.findall('object'):
        if each.find('name') is None:
            yield 'has an object without a name', 'write the name of its class'
        if each.findtext('name') not in classes:
            continue
        if each.find('difficult') is not None and not _numbers(each, ('difficult',), int):
            yield 'has an object with a difficult that is no whole number', 'write 0, or 1 for one that does not count'
        if len(_numbers(each.find('bndbox'), CORNERS, float)) < 4:
            yield f'has an object without a bndbox of {", ".join(CORNERS)}', 'write its corners in pixels'


def _numbers(node: Any, names: Collection[str], kind: type) -> list[float]:
    """The finite numbers that stand under these names."""
    found = []
    for name in names if node is not None else ():
        try:
            found.append(kind(node.findtext(name)))
        except (TypeError, ValueError):
            continue
    return [number for number in found if math.isfinite(number)]
