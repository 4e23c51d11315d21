"""What can be known of a run only once its data, model and metrics are built, and before its first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from rkan_mm.engine.run_error import PreflightError

from .absent import tell_absent_labels, tell_absent_objects
from .annotations import some
from .beginnings import tell_order, tell_random
from .building import checking
from .classification import check_labels, check_same_folders, tell_figures
from .config import is_mm, switches
from .datasets import check_same_classes, parts_of
from .effects import check_apart, check_predicting, check_training, watch_small_maps
from .fit import innermost
from .images import check_pictures
from .pixels import tell_pixels
from .random_steps import check_steps
from .trial import check_monitors, try_first

OF_COCO = ('CocoMetric', 'FasterCocoMetric')


class CheckRunHook(Hook):
    """Before a training or a test begins, compare model, data and metrics with each other, and try one image.

    Args:
        test: whether a test follows the training, whose data and metrics are then looked at as well.

    Raises:
        PreflightError: classes differ between data sets, or from those of a head; a label without a class; an
            evaluator with the annotations of other images; what `try_first` finds.
    """

    priority = 'LOWEST'  # other hooks may prepare the model or the data

    def __init__(self, test: bool = False) -> None:
        self.test, self._begun, self._learned = test, False, None
        self._end_watch: Callable[[], None] = lambda: None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint.get('meta') or {}
        meta = meta.get('dataset_meta') or meta  # of mm 2
        self._learned = meta.get('classes') or meta.get('CLASSES')

    def has_begun(self) -> bool:
        """Whether the first step has been taken, so that errors are those of the run."""
        return self._begun

    def before_train(self, runner: Runner) -> None:
        loops = {'train': runner.train_loop}
        if runner.val_loop is not None and _validates(runner.train_loop):
            loops['validation'] = runner.val_loop
        if self.test:
            loops['test'] = runner.test_loop
        with checking('What the training would do'):
            check_training(runner)
            tell_random(runner)
            tell_order(getattr(runner.train_loop, 'dataloader', None))
        self._check(runner, loops)
        self._end_watch = watch_small_maps(runner.model, getattr(runner.train_loop, 'dataloader', None))

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if not self._begun:
            self._begun = True
            self._end_watch()

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._begun = True

    def before_test(self, runner: Runner) -> None:
        if not runner.iter:  # no training came before it
            self._check(runner, {'test': runner.test_loop})

    def _check(self, runner: Runner, loops: dict[str, Any]) -> None:
        on, model = switches(runner.cfg), innermost(runner.model)
        data = {what: loop.dataloader.dataset for what, loop in loops.items()
                if hasattr(getattr(loop, 'dataloader', None), 'dataset')}
        if on['classes'] and _answers_by_labels(model):
            with checking('Classes of the data'):
                found = {f'the data of the {what}': _classes(dataset) for what, dataset in data.items()}
                learned = self._learned if 'train' not in data or getattr(runner, '_resume', False) else None
                check_same_classes({'the checkpoint': None if isinstance(learned, str) else learned, **found}, found)
            for what, dataset in data.items():
                with checking(f'Heads and labels of the {what}'):
                    check_heads(model, dataset, what)
        if on['classes'] and _is_classifier(model):
            with checking('Labels of folders'):
                check_same_folders(data)
            for what, dataset in data.items():
                with checking(f'Classes in the data of the {what}'):
                    tell_absent_labels(dataset, _num_classes(model), what)
        if on['images'] and is_main_process() and _is_classifier(model):
            for what, dataset in data.items():
                with checking(f'Images of the {what}'):
                    for part in parts_of(dataset):
                        check_pictures(part, what)
        with checking('Pixels'):
            tell_pixels(model, data)
        for what in [what for what in data if what != 'train']:
            loop = loops[what]
            if on['evaluator']:
                with checking(f'The evaluator of the {what}'):
                    check_predicting(loop, what)
                    check_steps(model, data[what], what)
                    check_evaluator(loop, what)
                    if _is_classifier(model):
                        tell_figures(data[what], getattr(loop.evaluator, 'metrics', ()), _num_classes(model), what)
                    if 'train' in data:
                        check_apart(data['train'], data[what], what)
            if on['trial']:
                with checking(f'The {what}'):
                    figures = try_first(runner, loop, what)
                    if what == 'validation':
                        check_monitors(runner, figures)


def _validates(loop: Any) -> bool:
    """Whether a training loop comes to its first validation."""
    last = getattr(loop, 'max_epochs', None) or getattr(loop, 'max_iters', None)
    return last is None or getattr(loop, 'val_begin', 1) <= last


def _is_classifier(model: nn.Module) -> bool:
    return any(base.__name__ == 'BaseClassifier' for base in type(model).__mro__)


def _num_classes(model: nn.Module) -> int | None:
    return getattr(getattr(model, 'head', None), 'num_classes', None)


def _answers_by_labels(model: nn.Module) -> bool:
    """Whether a model's answers are the labels of its data; those of retrieval, tracking and RPN are not."""
    kinds = {base.__name__ for base in type(model).__mro__}
    return 'RPN' not in kinds and bool(kinds & {'BaseClassifier', 'BaseDetector', 'BaseSegmentor'})


def _classes(dataset: Any) -> tuple[str, ...] | None:
    if any(getattr(part, 'return_classes', False) for part in parts_of(dataset)):
        return None  # the model is given the names
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return tuple(classes) if classes and not isinstance(classes, str) else None


def check_heads(model: nn.Module, dataset: Any, what: str) -> None:
    """Raise `PreflightError` if a head of a detector has another number of classes than the data, or a classifier less.

    A classifier with more is warned about: its figures are right. So is a detector of the user's own.
    """
    classes, warn = _classes(dataset), MMLogger.get_current_instance().warning
    name = type(next(parts_of(dataset))).__name__
    if _is_classifier(model):
        number = _num_classes(model)
        check_labels(dataset, number)
        if classes and isinstance(number, int) and number > len(classes):
            warn(f'head ({type(model.head).__name__}) has num_classes={number}, {name} of the {what} has '
                 f'{len(classes)} classes ({some(classes)}): is model.head.num_classes as you want it?')
        return
    if not classes:
        return
    meta = getattr(dataset, 'metainfo', None) or {}
    things, stuff = (meta.get(name) for name in ('thing_classes', 'stuff_classes'))  # of panoptic data
    right = {'num_classes': {len(classes), len(things or classes)}, 'num_things_classes': {len(things or classes)},
             **({'num_stuff_classes': {len(stuff)}} if stuff else {})}
    wrong = {f'model.{path}.{key}': (module, number) for path, module in model.named_modules() for key in right
             if isinstance(number := getattr(module, key, None), int) and number not in right[key]
             and not getattr(module, 'class_agnostic', False) and (key != 'num_classes' or _is_head(path))}
    if wrong:
        heads = ', '.join(f'{path.rpartition(".")[0]} ({type(module).__name__}) has {path.rpartition(".")[2]}={number}'
                          for path, (module, number) in wrong.items())
        text = f'{heads}; {name} of the {what} has {len(classes)} ({some(classes)})'
        if not is_mm(type(model)):
            return warn(text)
        options = ' '.join(f'{path}={min(right[path.rpartition(".")[2]])}' for path in wrong)
        raise PreflightError(f'{text}. Set {options}. To run all the same: --cfg-options preflight.classes=False')


def _is_head(path: str) -> bool:
    parts = [part for part in path.split('.') if not part.isdigit()]
    return bool(parts) and parts[-1] in ('bbox_head', 'mask_head')


def check_evaluator(loop: Any, what: str) -> None:
    """Raise `PreflightError` if COCO's metric reads annotations of other images than those that will be predicted."""
    dataset = loop.dataloader.dataset
    if not all(is_mm(type(part)) or is_mm(type(part), 'load_data_list', 'parse_data_info')
               for part in (dataset, *parts_of(dataset))):
        return
    metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', ())
    tell_absent_objects(loop, _classes(dataset), what)
    for metric in metrics:
        if type(metric).__name__ not in OF_COCO or not is_mm(type(metric)) or not hasattr(dataset, 'get_data_info'):
            continue
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if not all('img_id' in info and 'img_path' in info for info in infos):
            continue
        _check_once(infos, type(metric).__name__, what)
        if (coco := getattr(metric, '_coco_api', None)) is None:
            continue
        name = type(metric).__name__
        _check_numbering(dataset, coco, name, what)
        mine, theirs = {info['img_id']: info for info in infos}, coco.imgs
        odd = [info['img_path'] for key, info in mine.items() if not _is_of(info, theirs.get(key))]
        if not odd:  # two splits may number and name their images alike; where labels were but mended, most boxes stay
            strange = [info['img_path'] for info in mine.values() if not _shares_boxes(info, coco)]
            odd = strange if 2 * len(strange) > len(mine) else []
        cure = ('Give the evaluator the ann_file of this data set. To run all the same: --cfg-options '
                'preflight.evaluator=False')
        if odd:
            raise PreflightError(f'{name} of the {what} has other annotations than its data set: {len(odd)} of '
                                 f'{len(mine)} images are not so in its ann_file, such as {some(odd[:3])}. {cure}')
        missing = [str(theirs[key]['file_name']) for key in theirs if key not in mine and coco.imgToAnns[key]]
        if missing:
            raise PreflightError(f'{name} of the {what} would count the objects of {len(missing)} images as missed, '
                                 'which its data set leaves out (by filter_cfg or indices), such as '
                                 f'{some(missing[:3])}. {cure}')


def _check_numbering(dataset: Any, coco: Any, name: str, what: str) -> None:
    """A metric numbers labels by the categories of its json, in their order."""
    classes = _classes(dataset)
    if not classes:
        return
    numbered = coco.get_cat_ids(cat_names=list(classes))
    names = [coco.cats[key]['name'] for key in numbered]
    if names != list(classes) and any(list(getattr(part, 'cat_ids', ())) != numbered for part in parts_of(dataset)):
        raise PreflightError(f'{name} of the {what} numbers labels as its ann_file does, {some(names)}, and '
                             f'{type(next(parts_of(dataset))).__name__} as {some(classes)}: order the categories of '
                             'the json alike, and leave sort_categories out. To run all the same: --cfg-options '
                             'preflight.evaluator=False')


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
