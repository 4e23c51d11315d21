"""Whether metrics judge the images that are predicted, once each, by their own annotations."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from mmengine.evaluator import Evaluator
from mmengine.fileio import get_text
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from rkan_mm.engine.resume_state import sampler_of
from rkan_mm.engine.run_error import PreflightError

from .absent import OF_OBJECTS, tell_absent_objects, tell_limits
from .annotations import some
from .config import is_mm, kind
from .datasets import check_same_classes, common, names_of, parts_of
from .metric_settings import check_numpy
from .red import warn_in_red

OF_COCO = ('CocoMetric', 'FasterCocoMetric')
OF_LINES = 'CrowdHumanMetric'
OF_LVIS = 'LVISMetric'
OF_CITIES = 'CityScapesMetric'
CURE = 'Give the evaluator the ann_file of this data set. To run all the same: --cfg-options preflight.evaluator=False'


def check_evaluator(loop: Any, what: str) -> None:
    """Raise `PreflightError` if a metric reads annotations of other images than those that will be predicted.

    And if it is too old for the numpy that there is.
    """
    dataset: Any = loop.dataloader.dataset
    evaluator: Any = getattr(loop, 'evaluator', None)
    for metric in getattr(evaluator, 'metrics', ()):
        if is_mm(type(metric)):
            try:
                check_numpy(metric)
            except ValueError as error:
                raise PreflightError(f'{type(metric).__name__} of the {what} would fail: {error}. To run all the '
                                     'same: --cfg-options preflight.evaluator=False') from error
    if type(evaluator) is Evaluator:
        _check_judged(dataset, evaluator.metrics, loop, what)
    elif type(evaluator).__name__ == 'MultiDatasetsEvaluator':  # each metric is of one data set
        for part, metric in zip(getattr(dataset, 'datasets', ()), evaluator.metrics, strict=False):
            _check_judged(part, [metric], loop, what)


def _check_judged(dataset: Any, metrics: Sequence[Any], loop: Any, what: str) -> None:
    if not _is_read_by_mm(dataset):
        return
    metrics = [metric for metric in metrics if is_mm(type(metric))
               and type(metric).__name__ in {*OF_COCO, *OF_OBJECTS, OF_LINES, OF_LVIS, OF_CITIES}]
    if not metrics or not hasattr(dataset, 'get_data_info'):
        return
    if any(type(metric).__name__ == 'VOCMetric' for metric in metrics):
        _check_rows(dataset, what)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    _check_counted(dataset, infos, metrics, what)
    tell_absent_objects(infos, names_of(dataset), [type(metric).__name__ for metric in metrics], what)
    tell_limits(infos, loop.runner.cfg.get('model') or {}, what)
    if not all('img_id' in info and 'img_path' in info for info in infos):
        return
    for metric in metrics:
        if type(metric).__name__ == OF_LINES:
            _check_lines(infos, metric, sampler_of(loop.dataloader), what)
        if type(metric).__name__ == OF_CITIES and not metric.format_only and not metric.backend_args:
            _check_cities(infos, what)
        if type(metric).__name__ == OF_LVIS and metric._lvis_api:
            _check_lvis_json(infos, names_of(dataset), metric._lvis_api, what, metric.format_only)
        if type(metric).__name__ not in OF_COCO:
            continue
        _check_once(infos, type(metric).__name__, what)
        if (coco := getattr(metric, '_coco_api', None)) is None:
            continue
        name = type(metric).__name__
        _check_truth(dataset, infos, coco, name, metric.classwise, what)
        mine, theirs = {info['img_id']: info for info in infos}, coco.imgs
        missing = [str(theirs[key]['file_name']) for key in theirs if key not in mine and coco.imgToAnns[key]]
        if missing:
            raise PreflightError(f'{name} of the {what} would count the objects of {len(missing)} images as missed, '
                                 'which its data set leaves out (by filter_cfg or indices), such as '
                                 f'{some(missing[:3])}. {CURE}')
        if len(mine) < len(theirs):
            warn_in_red(f'{name} of the {what} judges {len(mine)} of the {len(theirs)} images of its ann_file: its '
                        'data set leaves out those without objects (by filter_cfg or indices), and what is found there '
                        'by mistake does not count. filter_cfg leaves out none with test_mode=True.')


def _check_counted(dataset: Any, infos: Sequence[dict], metrics: Sequence[Any], what: str) -> None:
    """Metrics that judge by what the data set has itself; of a json its own check says the same."""
    if any(not each.get('ignore_flag') for info in infos for each in info.get('instances', ())):
        return
    for metric in metrics:
        name, apart = type(metric).__name__, getattr(metric, '_coco_api', None) or getattr(metric, 'format_only', False)
        if name in ('VOCMetric', *OF_COCO) and not apart:
            raise PreflightError(f'{type(next(parts_of(dataset))).__name__} of the {what}: none of its {len(infos)} '
                                 f'images has an annotated object that counts, and each AP of {name} would be '
                                 f'{0 if name == "VOCMetric" else -1}. To run all the same: --cfg-options '
                                 'preflight.evaluator=False')


def _check_lines(infos: list[dict], metric: Any, sampler: Any, what: str) -> None:
    """CrowdHuman's metric takes its lines and the predictions for each other in their order, as far as both go."""
    lines = get_text(metric.ann_file, backend_args=metric.backend_args).strip().split('\n')
    theirs = [str(json.loads(line)['ID']) for line in lines]
    mine = [str(info['img_id']) for info in infos]
    if getattr(sampler, 'shuffle', False):
        raise PreflightError(f'{OF_LINES} of the {what} takes predictions in the order of its ann_file, and a sampler '
                             "mixes them: give sampler=dict(type='DefaultSampler', shuffle=False).")
    if mine != theirs:
        place = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if len({*pair}) > 1),
                     min(len(mine), len(theirs)))
        raise PreflightError(f'{OF_LINES} of the {what} has other lines in its ann_file ({len(theirs)}) than its data '
                             f'set has images ({len(mine)}), from number {place + 1} on: give both the same, in one '
                             'order. To run all the same: --cfg-options preflight.evaluator=False')


def _check_cities(infos: Sequence[dict], what: str) -> None:
    """CityScapesMetric finds maps of instances by the names of pictures, when all is predicted."""
    maps = [str(info['img_path']).replace('leftImg8bit.png', 'gtFine_instanceIds.png').replace('leftImg8bit', 'gtFine')
            for info in infos]
    if themselves := [path for path, info in zip(maps, infos, strict=True) if path == str(info['img_path'])]:
        raise PreflightError(f'{OF_CITIES} of the {what} would take {len(themselves)} of {len(maps)} pictures for '
                             f'their own maps of instances, such as {themselves[0]}: it finds a map by leftImg8bit '
                             'in the path of the picture. Call files and folders as Cityscapes does. To run all the '
                             'same: --cfg-options preflight.evaluator=False')
    if missing := [path for path in maps if not Path(path).exists()]:
        raise PreflightError(f'{OF_CITIES} of the {what} judges by {len(maps)} maps of instances, and {len(missing)} '
                             f'are not there, such as {missing[0]}: they lie as those of Cityscapes do. To run all the '
                             'same: --cfg-options preflight.evaluator=False')


def _check_lvis_json(infos: Sequence[dict], classes: Sequence[str] | None, api: Any, what: str,
                     format_only: bool = False) -> None:
    """LVIS numbers labels as its json does, and judges, if it does, by keys that a json of COCO lacks."""
    for name, entries, keys in (('images', api.imgs, ('neg_category_ids', 'not_exhaustive_category_ids')),
                                ('categories', api.cats, ('frequency', ))):
        for key in () if format_only else keys:
            if lacking := [each for each in entries.values() if key not in each]:
                raise PreflightError(f'{OF_LVIS} of the {what} would stop when all is predicted: {len(lacking)} of '
                                     f'{len(entries)} {name} in its ann_file have no {key}. Write it, or take '
                                     'CocoMetric. To run all the same: --cfg-options preflight.evaluator=False')
    who = f'the data of the {what}'
    check_same_classes({f'the ann_file of {OF_LVIS}': tuple(each['name'] for each in api.cats.values()),
                        who: tuple(classes) if classes else None}, [who], switch='evaluator')
    files = {key: PurePath(each.get('file_name') or each['coco_url']).name for key, each in api.imgs.items()}
    if odd := [info['img_path'] for info in infos  # those of COCO 2014 had a longer name
               if not files.get(info['img_id'], '').endswith(PurePath(info['img_path']).name)]:
        raise PreflightError(f'{OF_LVIS} of the {what} has other annotations than its data set: {len(odd)} of '
                             f'{len(infos)} images are not so in its ann_file, such as {some(odd[:3])}. {CURE}')


def check_part(dataset: Any, places: Sequence[int], content: dict, metric: dict, what: str) -> None:
    """`check_evaluator` for a part of a data set that is judged by the content of a json.

    Args:
        dataset: of mm; others are not looked at.
        places: in it, of the images that are predicted.
        content: of the json.
        metric: config of the metric; only COCO's are looked at.
        what: the data set is called.
    """
    name = kind(metric).rpartition('.')[2]
    if name not in OF_COCO or not _is_read_by_mm(dataset) or not hasattr(dataset, 'get_data_info'):
        return
    from mmdet.datasets.api_wrappers import COCO
    infos = [dataset.get_data_info(place) for place in places]
    if all('img_id' in info and 'img_path' in info for info in infos):
        _check_once(infos, name, what)
        coco = COCO()
        coco.dataset = content
        with contextlib.redirect_stdout(None):
            coco.createIndex()
        _check_truth(dataset, infos, coco, name, metric.get('classwise', False), what)


def _is_read_by_mm(dataset: Any) -> bool:
    return all(is_mm(type(part)) or is_mm(type(part), 'load_data_list', 'parse_data_info')
               for part in (dataset, *parts_of(dataset)))


def _check_truth(dataset: Any, infos: Sequence[dict], coco: Any, name: str, classwise: bool, what: str) -> None:
    """Whether a json has the objects of these images, under the numbers that their classes have in the data set."""
    _check_numbering(dataset, coco, name, what)
    if classwise:
        _check_columns(dataset, coco, name, what)
    mine = {info['img_id']: info for info in infos}
    odd = [info['img_path'] for key, info in mine.items() if not _is_of(info, coco.imgs.get(key))]
    if not odd:  # two splits may number and name their images alike; where labels were but mended, most boxes stay
        strange = [info['img_path'] for info in mine.values() if not _shares_boxes(info, coco)]
        odd = strange if 2 * len(strange) > len(mine) else []
    if odd:
        raise PreflightError(f'{name} of the {what} has other annotations than its data set: {len(odd)} of '
                             f'{len(mine)} images are not so in its ann_file, such as {some(odd[:3])}. {CURE}')


def _check_rows(dataset: Any, what: str) -> None:
    """VOCMetric calls the rows of its table as VOC does where the folder is called so, whatever its classes are."""
    from mmdet.evaluation import get_classes
    of_voc, names, year = get_classes('voc'), names_of(dataset), common(dataset.metainfo).get('dataset_type')
    if year not in ('VOC2007', 'VOC2012') or not names or list(names) == of_voc[:len(names)]:
        return
    text = (f"VOCMetric of the {what} gives the rows of its table the names of VOC's own classes, since the "
            f"sub_data_root of {type(next(parts_of(dataset))).__name__} has {year} in its name: ")
    cure = 'Call that folder otherwise, for your names.'
    if len(names) > len(of_voc):
        raise PreflightError(f'{text}there are {len(of_voc)} of them, and {len(names)} classes, at which it stops when '
                             f'all is predicted. {cure}')
    different = next(i for i, name in enumerate(names) if name != of_voc[i])
    warn_in_red(f'{text}{names[different]} will be called {of_voc[different]}. {cure}')


def _check_numbering(dataset: Any, coco: Any, name: str, what: str) -> None:
    """A metric numbers labels by the categories of its json, in their order."""
    classes = names_of(dataset)
    if not classes:
        return
    numbered = coco.get_cat_ids(cat_names=list(classes))
    names = [coco.cats[key]['name'] for key in numbered]
    things = common(dataset.metainfo).get('thing_classes')  # of panoptic data, whose instances these are
    alike = names in (list(classes), list(things or classes))
    if not alike and any(list(getattr(part, 'cat_ids', ())) != numbered for part in parts_of(dataset)):
        raise PreflightError(f'{name} of the {what} numbers labels as its ann_file does, {some(names)}, and '
                             f'{type(next(parts_of(dataset))).__name__} as {some(classes)}: order the categories of '
                             'the json alike, and give sort_categories=True for Objects365 alone. To run all the '
                             'same: --cfg-options preflight.evaluator=False')


def _check_columns(dataset: Any, coco: Any, name: str, what: str) -> None:
    """COCO's evaluation sorts categories by id, and mmdet names its columns by their order in the json."""
    numbered = coco.get_cat_ids(cat_names=list(names_of(dataset) or ()))
    names, shown = ([coco.cats[key]['name'] for key in keys] for keys in (numbered, sorted(numbered)))
    if different := [pair for pair in zip(shown, names, strict=True) if pair[0] != pair[1]]:
        raise PreflightError(f'{name} of the {what}, with classwise=True, would give the figures of {different[0][0]} '
                             f"as those of {different[0][1]}: the ids of its ann_file's categories, {some(numbered)}, "
                             f'do not ascend in the order of {some(names)}. Give the categories, and category_id of '
                             'the annotations, ids that do; labels stay as they are. To run all the same: '
                             '--cfg-options preflight.evaluator=False')


def _check_once(infos: list[dict], name: str, what: str) -> None:
    """Two predictions of one image would be taken for one image's: half of them count as false."""
    counts = Counter(info['img_id'] for info in infos)
    if double := [info['img_path'] for info in infos if counts[info['img_id']] > 1]:
        raise PreflightError(
            f'{name} of the {what} would count the predictions of {len(double)} images as those of '
            f'{sum(count > 1 for count in counts.values())}, such as {some(double[:3])}: '
            'the data set is repeated, or two have the same ids. Give each image once, under its own id. To run all '
            'the same: --cfg-options preflight.evaluator=False')


def _is_of(info: dict, image: dict | None) -> bool:
    """Whether an image of a data set is one of an evaluator's json."""
    if image is None:
        return False
    mine, theirs = (PurePath(str(path)).parts for path in (info['img_path'], image['file_name']))
    return mine[-1:] == theirs[-1:]


def _shares_boxes(info: dict, coco: Any) -> bool:
    """Whether an image has an object in common with the evaluator's json; mended boxes are of the same object."""
    from mmdet.evaluation.functional import bbox_overlaps
    mine = [instance['bbox'] for instance in info.get('instances', ())]
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (
        annotation['bbox'] for annotation in coco.imgToAnns[info['img_id']])]
    overlaps = bbox_overlaps(*(np.array(each, np.float32).reshape(-1, 4) for each in (mine, boxes)))
    return not mine or overlaps.max(initial=0) > 0.5


def takes_in_pictures(model: Any) -> bool:
    """Whether a model computes features of a gallery's pictures itself; those in a file or a tensor are given."""
    return hasattr(model, 'prepare_prototype') and isinstance(getattr(model, 'prototype', None), (dict, DataLoader))


def gallery_of(model: Any) -> Any:
    """The data set with which a retriever of mm's compares pictures, and which it loads at its first validation."""
    prototype = getattr(model, 'prototype', None)
    if not isinstance(prototype, dict) or 'dataset' not in prototype or not is_mm(type(model)):
        return None
    return DATASETS.build(copy.deepcopy(prototype['dataset']))


def check_gallery(gallery: Any, metrics: Sequence[Any], what: str) -> None:
    """Raise `PreflightError` if the gallery of a retriever has less pictures than a metric asks for."""
    for metric in metrics:
        most = np.max(getattr(metric, 'topk', 0)) if type(metric).__name__.startswith('Retrieval') else 0
        if is_mm(type(metric)) and most > len(gallery):
            raise PreflightError(f'{type(metric).__name__} of the {what} asks for the first {most} pictures, and '
                                 f'model.prototype.dataset has {len(gallery)}: lower topk. To run all the same: '
                                 '--cfg-options preflight.evaluator=False')
