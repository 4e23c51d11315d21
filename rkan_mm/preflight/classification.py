"""What goes wrong with classification data and checkpoints, said before or at the start of a run in one sentence."""

from __future__ import annotations

import itertools
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torchvision
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from rkan_mm.spread import spread

from .annotations import some
from .checks import PreflightError
from .config import is_mm, switches
from .config import kind as kind_of
from .datasets import DOWNLOADING, data_sets, names_of, parts_of
from .images import LOOKED_AT, PICTURES
from .red import warn_in_red

PARTS = {  # what a split of a data set cannot do without
    'TinyImageNet': lambda split: ('train', split),
    'Food101': lambda split: ('images', f'meta/{split}.txt'),
}


SWITCH = 'To run all the same: --cfg-options preflight.classes=False'


def check_classification(cfg: Config, training: bool) -> None:
    """Raise `PreflightError` if parts of a data set of mmpretrain or ours are missing and cannot be downloaded.

    Args:
        cfg: config of a mmengine runner.
        training: whether the run trains (and validates) or tests.
    """
    if not switches(cfg)['paths']:
        return
    hint = cfg.get('data_hint') or 'Set its path in the config.'
    for split in ('train', 'val') if training else ('test',):
        for dataset in data_sets(cfg.get(f'{split}_dataloader')):
            kind, root = kind_of(dataset), Path(dataset.get('data_root') or '.')
            part_of = dataset.get('split', 'train')
            for part in PARTS.get(kind, lambda split: ())(part_of):
                if not (root / part).exists():
                    raise PreflightError(f'{kind}: {str(root / part)!r} does not exist. {hint}')
            if kind in DOWNLOADING and dataset.get('download', True):
                _check_download(kind, root, part_of, hint)


def _check_download(kind: str, root: Path, split: str, hint: str) -> None:
    from mmpretrain.datasets.utils import calculate_md5
    for name, address, md5, unpacked in _downloads(kind, split):
        if all((root / file).exists() for file in unpacked):
            continue  # the data set itself checks these
        archive = root / name
        if archive.exists():
            if (found := calculate_md5(str(archive))) != md5:
                raise PreflightError(f'{kind}: {str(archive)!r} is torn or another file, of md5 {found} and not {md5}. '
                                     f'Delete it. {hint}')
            continue
        try:
            urllib.request.urlopen(urllib.request.Request(address, method='HEAD'), timeout=10).close()
        except (urllib.error.URLError, OSError) as error:
            if getattr(error, 'code', 404) not in (404, 410):
                continue
            raise PreflightError(f'{kind}: it is not in {str(root)!r} and cannot be downloaded '
                                 f'({getattr(error, "reason", error)}). {hint}') from error


def _downloads(kind: str, split: str) -> list[tuple[str, str, str, list[str]]]:
    """Name, address and md5 of each file to download, and what it is unpacked to."""
    if kind == 'SVHN':
        address, name, md5 = torchvision.datasets.SVHN.split_list[split]
        return [(name, address, md5, [name])]
    init_default_scope('mmpretrain')
    cls = DATASETS.get(f'mmpretrain.{kind}')
    if hasattr(cls, 'tgz_md5'):
        files = [f'{cls.base_folder}/{name}' for name, _ in (*cls.train_list, *cls.test_list)]
        return [(cls.filename, cls.url, cls.tgz_md5, files)]
    return [(name, cls.url_prefix + name, md5, [name.removesuffix('.gz')])
            for name, md5 in (*cls.train_list, *cls.test_list)]


def check_labels(dataset: Any, num_classes: int | None) -> None:
    """Compare the labels of a classification data set with the classes of the model; warn of pictures left out.

    Raises:
        PreflightError: a label that the head has no class for, with its image.
    """
    for part in parts_of(dataset):
        steps = getattr(getattr(part, 'pipeline', None), 'transforms', ())
        if all(is_mm(type(step)) for step in steps):  # one of the user's own may give other labels
            check_numbered(part, num_classes)


_LABELS: WeakKeyDictionary[Any, tuple[int, np.ndarray]] = WeakKeyDictionary()
"""Labels of data sets that have been read, which takes seconds for a million images, by how many there were."""


def labels_of(dataset: Any) -> np.ndarray | None:
    """The label of each image of a classification data set; None where it gives none, or several of an image."""
    if not hasattr(dataset, 'get_gt_labels'):
        return None
    size, labels = _LABELS.get(dataset, (-1, None))
    if labels is None or size != len(dataset):
        try:
            labels = np.asarray(dataset.get_gt_labels())
        except (AttributeError, KeyError, ValueError):
            return None
        _LABELS[dataset] = len(dataset), labels
    return labels if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) else None


def all_labels(dataset: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """All labels of a classification data set, and the number of the image of each; None where it gives none."""
    if (labels := labels_of(dataset)) is not None:
        return labels, np.arange(len(labels))
    try:
        several = [list(dataset.get_cat_ids(i)) for i in range(len(dataset))]
        labels = np.array([label for each in several for label in each], int)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return labels, np.repeat(np.arange(len(several)), [len(each) for each in several])


def check_numbered(dataset: Any, num_classes: int | None) -> None:
    """`check_labels` of one data set alone, or of what answers as one, with its ``name``."""
    who = getattr(dataset, 'name', type(dataset).__name__)
    found = all_labels(dataset)
    if found is None:
        return _check_labelled(who, dataset)
    labels, images = found
    if num_classes is not None:
        _check_numbers(who, dataset, labels, images, num_classes)
        outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(outside):
            first = int(images[outside[0]])
            where = dataset.get_data_info(first).get('img_path', f'image {first}')
            raise PreflightError(f'{who}: {where} has the label {labels[outside[0]]}, but the head of the model has '
                                 f'num_classes={num_classes} (0 to {num_classes - 1}); {len({*images[outside]})} of '
                                 f'{len(dataset)} images are so. {SWITCH}')
    if getattr(dataset, 'folder_to_idx', None) and not getattr(dataset, 'ann_file', ''):
        _check_endings(dataset)


def _check_labelled(who: str, dataset: Any) -> None:
    """Pictures without a label, among others that have one, end a run when their batch comes."""
    if not hasattr(dataset, 'get_data_info'):
        return

    def has_none(i: int) -> bool:
        return not {'gt_label', 'gt_score'} & {*dataset.get_data_info(i)}

    if all(map(has_none, spread(len(dataset), LOOKED_AT))):  # a run that predicts alone
        return
    without = [str(dataset.get_data_info(i).get('img_path', i)) for i in range(len(dataset)) if has_none(i)]
    if without:
        raise PreflightError(f'{who}: {some(without)} {"have" if len(without) > 1 else "has"} no gt_label, '
                             f'{len(without)} of {len(dataset)} pictures: write it, or take them out. {SWITCH}')


def _check_numbers(who: str, dataset: Any, labels: np.ndarray, images: np.ndarray, num_classes: int) -> None:
    """Labels that say 0 or 1 of each class would be read as the numbers of the first two."""
    if num_classes == 1 or len(labels) != len(dataset) * num_classes or not np.isin(labels, (0, 1)).all():
        return
    of_each = (np.bincount(images, minlength=len(dataset)) == num_classes).all()
    if of_each and (labels.reshape(-1, num_classes) != np.arange(num_classes)).any():
        info = dataset.get_data_info(0)
        raise PreflightError(f'{who}: the gt_label of {info.get("img_path", "image 0")} is {list(info["gt_label"])}, a '
                             '0 or a 1 for each class, as of all images, and mmpretrain reads the numbers of its '
                             f'classes: write {np.flatnonzero(info["gt_label"]).tolist()}, or call it gt_score. '
                             f'{SWITCH}')


def tell_figures(dataset: Any, metrics: Iterable[Any], num_classes: int | None, what: str) -> None:
    """Warn in red of an accuracy that counts some pictures more often than others, or that can be no other than 100.

    Args:
        dataset: of the validation or test.
        metrics: of the evaluator.
        num_classes: of the head.
        what: ``'validation'`` or ``'test'``.
    """
    for metric in metrics:
        most = max(metric.topk) if type(metric).__name__ == 'Accuracy' and is_mm(type(metric)) else 0
        if most and most == num_classes:
            warn_in_red(f'top{most} of the {what} will be 100: there are {num_classes} classes.')
    if not hasattr(dataset, 'get_data_info') or not all(is_mm(type(part)) for part in (dataset, *parts_of(dataset))):
        return
    counts = Counter(path for i in range(len(dataset))
                     if isinstance(path := dataset.get_data_info(i).get('img_path'), str))
    if len(set(counts.values())) > 1:
        often = [path for path, count in counts.items() if count > 1]
        warn_in_red(f'{len(often)} of {len(counts)} pictures of the {what} are counted more than once, such as '
                    f'{some(often[:3])}: its figures are not those of the pictures as they are.')


def check_same_folders(data: dict[str, Any]) -> None:
    """Raise `PreflightError` if a folder of pictures has one label in one data set and another in the next.

    Where several folders of the first have one label, and need not be those of classes, that is a warning in red.

    Args:
        data: data sets by what they are for. Folders whose pictures have several labels say nothing.
    """
    found = [(what, _labels_of_folders(dataset)) for what, dataset in data.items()]
    for (first, known), (what, labels) in itertools.pairwise(found):
        if odd := sorted(name for name in known.keys() & labels.keys() if known[name] != labels[name]):
            text = (f'The pictures of {odd[0]} have the label {known[odd[0]]} in the data of the {first}, and '
                    f'{labels[odd[0]]} in those of the {what}; {len(odd)} folders are so. Number classes alike in '
                    'folders and lists.')
            if len({*found[0][1].values()}) == len(found[0][1]):
                raise PreflightError(f'{text} {SWITCH}')
            warn_in_red(f'{text} If each folder is of a clip or a patient, and not of a class, all is well.')


def check_names_of_folders(dataset: Any, what: str) -> None:
    """Raise `PreflightError` if pictures in a folder that a class is named after have the label of another class.

    Args:
        dataset: of mmpretrain, or a wrapper.
        what: ``'train'``, ``'validation'`` or ``'test'``.
    """
    names = [str(name) for name in names_of(dataset) or ()]
    fold = str.casefold if len({*map(str.casefold, names)}) == len(names) else str
    numbers = {fold(name): i for i, name in enumerate(names)}
    labels = _labels_of_folders(dataset)
    odd = [name for name, label in labels.items() if numbers.get(fold(name), label) != label < len(names)]
    if odd:
        there = sorted(labels, key=lambda name: labels[name])
        cure = f'write them as {some(there)}' if len(there) == len(names) else 'write them in the order of the labels'
        raise PreflightError(f'The pictures of {odd[0]} have the label {labels[odd[0]]} in '
                             f'{type(next(parts_of(dataset))).__name__} of the {what}, which classes name '
                             f'{names[labels[odd[0]]]!r}; {len(odd)} folders are so. Folders are numbered by the '
                             f'alphabet, classes as they are written: {cure}, or leave them out. {SWITCH}')


def _labels_of_folders(dataset: Any) -> dict[str, int]:
    """Of each folder all of whose pictures have one label, by its name; of folders within such a folder none."""
    if not hasattr(dataset, 'get_data_info') or not all(is_mm(type(part)) for part in (dataset, *parts_of(dataset))):
        return {}
    pictures: list[list[Path]] = []
    labels: dict[Path, set] = {}
    for i in spread(len(dataset), LOOKED_AT):
        info = dataset.get_data_info(i)
        if isinstance(info.get('img_path'), str) and isinstance(info.get('gt_label'), (int, np.integer)):
            pictures.append(list(Path(info['img_path']).parents)[::-1])
            for folder in pictures[-1]:
                labels.setdefault(folder, set()).add(int(info['gt_label']))
    found: dict[str, set] = {}
    for folders in pictures:
        if outermost := next((folder for folder in folders if len(labels[folder]) == 1), None):
            found.setdefault(outermost.name, set()).update(labels[outermost])
    return {name: each.pop() for name, each in found.items() if len(each) == 1} if len(found) > 1 else {}


def _check_endings(dataset: Any) -> None:
    """Warn in red of pictures that a data set of folders passes over for how their names end."""
    prefix, read = str(getattr(dataset, 'img_prefix', '')), tuple(getattr(dataset, 'extensions', ()))
    if '://' in prefix or not read:
        return
    names = (os.path.join(folder, name) for folder, _, names in os.walk(prefix) for name in names)
    left_out = sorted(name for name in itertools.islice(names, LOOKED_AT)
                      if name.lower().endswith(PICTURES) and not name.lower().endswith(read))
    if left_out:
        warn_in_red(f'{type(dataset).__name__} reads no {some(sorted({Path(name).suffix for name in left_out}))}: '
                    f'{len(left_out)} of the pictures in {prefix!r} are left out, such as {left_out[0]}. Name them in '
                    'extensions, or convert them.')
