"""The data sets in a config: paths, class names, and what a run will ask of their annotations."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, list_from_file, load
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS

from rkan_mm.engine.run_error import PreflightError

from .annotations import check_annotations, some
from .config import built_from, dicts_with, is_mm, kind, switches
from .images import READERS, reading
from .lists import check_list, tell_names
from .xml_files import check_xml

DOWNLOADING = {'CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST', 'SVHN'}  # data sets that fetch themselves


def data_sets(loader: dict | None) -> Iterator[dict]:
    """The configs of all data sets in that of a data loader, within wrappers too."""
    for _, node in dicts_with(loader, 'type'):
        if any(key in node for key in ('ann_file', 'data_root', 'data_prefix')):
            yield node


def parts_of(dataset: Any) -> Iterator[Any]:
    """The data sets within wrappers."""
    inner = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    for part in inner:
        yield from parts_of(part)
    if not inner:
        yield dataset


def names_of(dataset: Any) -> tuple[str, ...] | None:
    """The classes of a data set that has been built; None where it has none, or gives the model their names."""
    if any(getattr(part, 'return_classes', False) for part in parts_of(dataset)):
        return None
    classes = common(getattr(dataset, 'metainfo', None)).get('classes')
    return tuple(classes) if classes and not isinstance(classes, str) else None


def common(metainfo: dict | Sequence[dict] | None) -> dict:
    """A metainfo; of mmdet's ConcatDataset, which has a list where those of its parts differ, what all of them have."""
    given = metainfo or {}
    first, *others = [given] if isinstance(given, dict) else given
    return {key: value for key, value in first.items() if all(key in each and each[key] == value for each in others)}


def names_by_part(dataset: Any, what: str) -> dict[str, tuple[str, ...] | None]:
    """The classes of a data set, by its name; of each part that has labels where one made of parts has none as a whole.

    Args:
        dataset: that has been built.
        what: it is for.
    """
    names, parts = names_of(dataset), [part for part in parts_of(dataset) if _labels_objects(part)]
    if names is not None or len(parts) < 2:
        return {f'the data of the {what}': names}
    return {f'data set {i} of the {what}': names_of(part) for i, part in enumerate(parts)}


def names_written(dataset: Any, loader: dict | None) -> dict[str, tuple[str, ...] | None]:
    """Two lists of classes of one data set: the one in its json of mm's own format, and the one in the config.

    Labels are numbers in the first list; heads and figures name them by the second.

    Args:
        dataset: that has been built; nothing is said of one of other files.
        loader: its part of the config, None where that is not known; where it names no classes, nor the class of the
            data set does, there is one list only.
    """
    if getattr(type(dataset), 'load_data_list', None) is not BaseDataset.load_data_list:
        return {}
    named = (type(dataset).METAINFO or {}).get('classes') or any(
        node.get('classes') or 'classes' in (node.get('metainfo') or ()) for _, node in dicts_with(loader, 'type'))
    if loader is not None and not named:
        return {}
    written = load(dataset.ann_file).get('metainfo') or {}
    classes = written.get('classes') or [each['category_name'] for each in sorted(
        written.get('categories') or (), key=lambda each: each['id'])]
    return {f'metainfo of {dataset.ann_file}': tuple(classes) or None, 'the config': names_of(dataset)}


def _labels_objects(dataset: Any) -> bool:
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return any(type(step).__name__ == 'LoadAnnotations' for step in steps)


def check_data_sets(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raise `PreflightError` at the first fault of the data sets of these splits of a config."""
    on = switches(cfg)
    for split in splits:
        evaluators = list(dicts_with(cfg.get(f'{split}_evaluator'), 'type'))
        gallery = (cfg.get('model') or {}).get('prototype') if split != 'train' else None  # of a retriever
        for dataset in (*data_sets(cfg.get(f'{split}_dataloader')), *data_sets(gallery)):
            _check_of_mm_2(dataset, cfg)
            if on['paths']:
                check_paths(dataset, cfg)
            class_names(dataset, cfg)
            if on['annotations'] and is_first_process():
                check_list(dataset, dataset_class(dataset, cfg))
                tell_names(dataset)
                check_xml(dataset, dataset_class(dataset, cfg), class_names(dataset, cfg))
            if on['annotations'] and is_coco(dataset, cfg) and is_first_process():
                _check_json(dataset, cfg, split, [evaluator for _, evaluator in evaluators])
        for _, evaluator in evaluators:
            for key, what in dict(ann_file='annotation file', seg_prefix='folder of maps').items():
                if on['paths'] and evaluator.get(key):
                    _check_path(evaluator[key], f'{kind(evaluator)}: {what}', cfg.get('data_hint'),
                                evaluator.get('backend_args'))
    if on['classes']:
        first = {split: next(data_sets(cfg.get(f'{split}_dataloader')), None) for split in ('train', 'val', 'test')}
        check_same_classes({split: class_names(dataset, cfg) for split, dataset in first.items()
                            if dataset is not None and not dataset.get('return_classes')}, used=())


def _check_of_mm_2(dataset: dict, cfg: Config) -> None:
    """Several files, and folders, as mmdet 2 took them."""
    cls: Any = dataset_class(dataset, cfg)
    if not any(base.__name__ == 'BaseDetDataset' for base in getattr(cls, '__mro__', ())) or not is_mm(cls, '__init__'):
        return
    ann_file, prefix = dataset.get('ann_file'), dataset.get('data_prefix')
    if isinstance(ann_file, (list, tuple)):
        raise PreflightError(f'{kind(dataset)}: ann_file is a list, and mmdet takes one file: write '
                             "dict(type='ConcatDataset', datasets=[...]), with a data set for each.")
    if isinstance(prefix, str):
        raise PreflightError(f'{kind(dataset)}: data_prefix is the text {prefix!r}, and mmdet takes names of folders: '
                             f'data_prefix=dict(img={prefix!r}), for XML files dict(sub_data_root={prefix!r}).')


def check_same_classes(found: dict[str, tuple[str, ...] | None], used: Collection[str],
                       switch: str = 'classes') -> None:
    """Raise `PreflightError` if classes of one name have another number in one data set than in the first.

    Where no name has moved, as from ``('pedestrian',)`` to ``('person',)``, that is a warning.

    Args:
        found: class names by what has them, None where unknown; the first one says what is right.
        used: those that the run will use. Of others, as a base config's test set, only another order is an error.
        switch: the setting under ``preflight`` that leaves the check out.
    """
    known = {who: tuple(classes) for who, classes in found.items() if classes is not None}
    if not known:
        return
    first, classes = next(iter(known.items()))
    numbers = {name: i for i, name in enumerate(classes)}
    for who, others in known.items():
        if others == classes or (who not in used and set(others) != set(classes)):
            continue
        differs = next((i for i, (a, b) in enumerate(zip(classes, others, strict=False)) if a != b),
                       min(len(classes), len(others)))
        text = (f'{first} has the classes {some(classes)}, {who} has {some(others)}; they differ from number {differs} '
                'on, and labels are numbers')
        if all(numbers.get(name, i) == i for i, name in enumerate(others)):
            MMLogger.get_current_instance().warning(text)
            continue
        raise PreflightError(f'{text}. Give all the same, in the same order. To run all the same: --cfg-options '
                             f'preflight.{switch}=False')


def dataset_class(dataset: dict, cfg: Config) -> Callable | None:
    """The class, or function, that a data set's config names; None if there is none."""
    return built_from(dataset['type'], DATASETS, cfg)


def is_coco(dataset: dict, cfg: Config) -> bool:
    """Whether a data set reads COCO's json as mmdet's CocoDataset does."""
    return reads_coco(dataset_class(dataset, cfg))


def reads_coco(cls: Any) -> bool:
    """The same of a class."""
    if not isinstance(cls, type) or not any(base.__name__ == 'CocoDataset' for base in cls.__mro__):
        return False
    from mmdet.datasets import CocoDataset
    return issubclass(cls, CocoDataset) and all(getattr(cls, name) is getattr(CocoDataset, name) for name in (
        'load_data_list', 'parse_data_info'))


def class_names(dataset: dict, cfg: Config) -> tuple[str, ...] | None:
    """The classes of a data set's config, else of its class; None where only the data know them.

    Raises:
        PreflightError: ``classes`` is a string and no file, or written as in mmdet 2.
    """
    cls = dataset_class(dataset, cfg)
    if cls is None or not is_mm(cls, *(['__init__'] if isinstance(cls, type) else [])):
        return None  # it may find its classes in ways of its own
    meta = dataset.get('metainfo') or {}
    classes = (meta.get('classes') if isinstance(meta, dict) else None) or dataset.get('classes')
    if not classes and isinstance(meta, dict) and 'CLASSES' in meta:
        raise PreflightError(f'{kind(dataset)}: metainfo has CLASSES, which mmdet 3 does not read: write '
                             'metainfo=dict(classes=...).')
    if isinstance(classes, str):
        if '://' in classes:
            return None
        if not Path(classes).expanduser().is_file():
            raise PreflightError(f'{kind(dataset)}: classes is the text {classes!r}, and there is no such file; mm '
                                 f'wants a tuple, for one class with a comma: classes=({classes!r}, )')
        classes = list_from_file(str(Path(classes).expanduser()))
    classes = classes or (getattr(cls, 'METAINFO', None) or {}).get('classes')
    return tuple(classes) if classes else None


def check_paths(dataset: dict, cfg: Config) -> None:
    """Raise `PreflightError` if a data set's files are not there.

    What a class of the user's own does with its paths is its own affair.
    """
    name, root, hint = kind(dataset), dataset.get('data_root') or '', cfg.get('data_hint')
    cls = dataset_class(dataset, cfg)
    methods = [method for method in ('__init__', '_join_prefix', 'load_data_list') if isinstance(cls, type)
               and hasattr(cls, method)]
    if name in DOWNLOADING or cls is None or not is_mm(cls, *methods):
        return
    prefixes = dataset.get('data_prefix') or {}
    prefixes = prefixes if isinstance(prefixes, dict) else {'img': prefixes}
    seg = any(kind(step) == 'LoadPanopticAnnotations' or step.get('with_seg')
              for _, step in dicts_with(dataset.get('pipeline'), 'type'))
    given = [('annotation file', dataset.get('ann_file'))]
    given += [('image folder', prefix) for key, prefix in prefixes.items() if seg or 'seg' not in key]
    if name == 'ImageNet' and not prefixes:
        given.append(('image folder', dataset.get('split')))
    parts = [(what, part) for what, part in given if isinstance(part, str) and part]
    backend = dataset.get('backend_args')
    if root and (not parts or any(not os.path.isabs(part) and '://' not in part for _, part in parts)):
        _check_path(_join(root, ''), f'{name}: data root', hint, backend)
    elsewhere = any(reads_elsewhere(step) for _, step in dicts_with(dataset.get('pipeline'), 'type'))
    for what, part in parts:
        if what != 'image folder' or not elsewhere:
            _check_path(_join(root, part), f'{name}: {what}', hint, backend)


def reads_elsewhere(step: dict) -> bool:
    """Whether a step of a pipeline loads pictures from elsewhere than the disk, by a backend of its own."""
    given = step.get('backend_args') or step.get('file_client_args') or {}
    return kind(step) == 'LoadImageFromFile' and given.get('backend', 'local') not in ('local', 'disk')


def _join(root: str, part: str) -> str:
    return part if '://' in part else f'{root.rstrip("/")}/{part}' if '://' in root else str(Path(root) / part)


def _check_path(path: str, what: str, hint: str | None, backend_args: dict | None) -> None:
    if '://' in path:
        return
    if backend_args and backend_args.get('backend') != 'local':
        try:
            if exists(path, backend_args=backend_args):
                return
        except Exception:  # a backend that cannot say, or that only the run's machine has
            return
    elif Path(path).expanduser().exists():
        return
    raise PreflightError(f'{what} {path!r} does not exist. {hint or "Set its path in the config."}')


def is_first_process() -> bool:
    return all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))


def _check_json(dataset: dict, cfg: Config, split: str, evaluators: list[dict]) -> None:
    on, root, ann_file = switches(cfg), dataset.get('data_root') or '', dataset.get('ann_file') or ''
    path, backend = _join(root, ann_file), dataset.get('backend_args')
    remote = '://' in path or (backend and backend.get('backend') != 'local')
    classes = class_names(dataset, cfg)
    if remote or not classes or not Path(path).is_file():
        return
    steps = [step for _, step in dicts_with(cfg.get(f'{split}_dataloader'), 'type')]
    judging = [evaluator for evaluator in evaluators if kind(evaluator).endswith('CocoMetric')
               and evaluator.get('ann_file') and not evaluator.get('format_only')]
    masks = any(step.get('with_mask') for step in steps) or any('segm' in _list(evaluator.get('metric', 'bbox'))
                                                                for evaluator in judging)
    loader = next((step for step in steps if kind(step) == 'LoadImageFromFile'), None)
    looked_at = (on['images'] and loader is not None and not reads_elsewhere(loader)
                 and loader.get('imdecode_backend', 'cv2') in READERS)
    color = (loader or {}).get('color_type', 'color')
    read = reading(color, (loader or {}).get('imdecode_backend', 'cv2'))
    own = [kind(step) for _, step in dicts_with(dataset.get('pipeline'), 'type')]
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    check_annotations(
        path, _join(root, prefix) if looked_at and '://' not in prefix else None, classes,
        on['allow_unknown'], evaluated=bool(judging), masks=masks, trained=split == 'train', ordered=on['classes'],
        filter_cfg=None if dataset.get('test_mode') else dataset.get('filter_cfg'),
        labelled=bool(judging) if split != 'train' else 'LoadAnnotations' in own, read=read,
        some_absent=split == 'train' and bool((loader or {}).get('ignore_empty')),
        turned=color in ('color', 'grayscale') and loader.get('imdecode_backend') != 'turbojpeg' if loader else True)


def _list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
