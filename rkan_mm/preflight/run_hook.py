"""What can be known of a run only once its data, model and metrics are built, and before its first step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from rkan_mm.engine.run_error import PreflightError

from .absent import tell_absent_labels, tell_unnamed
from .annotations import some
from .beginnings import tell_order, tell_random
from .building import checking
from .classification import check_labels, check_names_of_folders, check_same_folders, tell_figures
from .config import is_mm, switches
from .datasets import check_same_classes, common, names_by_part, names_of, names_written, parts_of, reads_coco
from .effects import check_apart, check_predicting, check_training, validates, watch_small_maps
from .evaluators import check_evaluator, check_gallery, gallery_of
from .fit import innermost
from .images import check_pictures
from .later import check_later
from .monitors import check_monitors
from .objects import check_maps, check_objects
from .pipelines import tell_steps
from .pixels import tell_pixels
from .random_steps import check_steps
from .tasks import check_tasks
from .trial import try_first, try_sizes


class CheckRunHook(Hook):
    """Before a training or a test begins, compare model, data and metrics with each other, and try one image.

    Args:
        test: whether a test follows the training, whose data and metrics are then looked at as well.

    Raises:
        PreflightError: classes differ between data sets, or from those of a head; a label out of range; an
            evaluator with the annotations of other images; what `try_first` finds.
    """

    priority = 'LOWEST'  # other hooks may prepare the model or the data

    def __init__(self, test: bool = False) -> None:
        self.test, self._trains, self._begun = test, False, False
        self._learned: tuple[str, ...] | None = None
        self._end_watch: Callable[[], None] = lambda: None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._learned = learned_classes(checkpoint.get('meta') or {})

    def has_begun(self) -> bool:
        """Whether the first step has been taken, so that errors are those of the run."""
        return self._begun

    def before_train(self, runner: Runner) -> None:
        self._trains = True
        loops = {'train': runner.train_loop}
        if runner.val_loop is not None and validates(runner.train_loop):
            loops['validation'] = runner.val_loop
        if self.test:
            loops['test'] = runner.test_loop
        with checking('What the training would do'):
            check_training(runner)
            tell_random(runner)
            tell_order(getattr(runner.train_loop, 'dataloader', None))
        self._check(runner, loops)
        with checking('What hooks do later'):
            check_later(runner)
        with checking('What batch norms would make of the last batch'):
            self._end_watch = watch_small_maps(runner.model, getattr(runner.train_loop, 'dataloader', None))

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if not self._begun:
            self._begun = True
            self._end_watch()

    def after_test_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._begun = True

    def before_test(self, runner: Runner) -> None:
        if not self._trains:  # which has looked at the test as well; runner.iter would build the training's data
            self._check(runner, {'test': runner.test_loop})

    def _check(self, runner: Runner, loops: dict[str, Any]) -> None:
        on, model = switches(runner.cfg), innermost(runner.model)
        data = {what: loop.dataloader.dataset for what, loop in loops.items()
                if hasattr(getattr(loop, 'dataloader', None), 'dataset')}
        if on['classes']:
            learned = self._learned if 'train' not in data or getattr(runner, '_resume', False) else None
            check_classes(model, runner.cfg, data, learned)
        gallery: Any = None
        if (on['images'] or on['evaluator']) and set(data) - {'train'}:
            with checking('The gallery'):
                gallery = gallery_of(model)
        if on['images'] and is_main_process():
            with checking('Images of the gallery'):
                for part in () if gallery is None else parts_of(gallery):
                    check_pictures(part, 'gallery')
            for what, dataset in data.items():
                with checking(f'Images of the {what}'):
                    for part in parts_of(dataset):
                        check_pictures(part, what, maps_alone=reads_coco(type(part)))  # its json has been looked at
        if on['annotations'] and is_main_process():
            for what, dataset in data.items():
                with checking(f'Names of objects of the {what}'):
                    for part in parts_of(dataset):
                        tell_unnamed(part, what)
        detector = any(base.__name__ == 'BaseDetector' for base in type(model).__mro__)
        if on['annotations'] and detector and is_main_process():
            for what, dataset in data.items():
                with checking(f'Objects of the {what}'):
                    check_objects(dataset, what, _answers_by_labels(model))
        if on['annotations'] and is_main_process():
            for what, dataset in data.items():
                with checking(f'Labels of pixels of the {what}'):
                    check_maps(model, dataset, what)
        with checking('Pixels'):
            tell_pixels(model, data)
        if detector:
            with checking('Steps of the pipelines'):
                tell_steps(data, {what: getattr(getattr(loop, 'evaluator', None), 'metrics', ())
                                  for what, loop in loops.items()})
        if on['trial'] and 'train' in data:
            with checking('Sizes of pictures'):
                try_sizes(runner, loops['train'].dataloader)
        for what in [what for what in data if what != 'train']:
            loop = loops[what]
            if on['evaluator']:
                with checking(f'The evaluator of the {what}'):
                    check_predicting(loop, what)
                    check_steps(model, data[what], what)
                    check_evaluator(loop, what)
                    if gallery is not None:
                        check_gallery(gallery, getattr(loop.evaluator, 'metrics', ()), what)
                    if _is_classifier(model):
                        tell_figures(data[what], getattr(loop.evaluator, 'metrics', ()), _num_classes(model), what)
                    if 'train' in data:
                        check_apart(data['train'], data[what], what)
            if on['trial']:
                with checking(f'The {what}'):
                    figures = try_first(runner, loop, what)
                    if what == 'validation':
                        check_monitors(runner, figures)


def learned_classes(meta: dict) -> tuple[str, ...] | None:
    """Names of the classes that a checkpoint was trained on, by its ``meta``; None where it does not tell."""
    meta = common(meta.get('dataset_meta')) or meta  # of mm 2
    names = meta.get('classes') or meta.get('CLASSES')
    return None if not names or isinstance(names, str) else tuple(names)


def check_classes(model: nn.Module, cfg: Config, data: dict[str, Any], learned: tuple[str, ...] | None) -> None:
    """Raise `PreflightError` if classes have other numbers, or other names, in one of these than in another.

    Args:
        model: whose heads are looked at.
        cfg: its config.
        data: data sets, by ``'train'``, ``'validation'`` and ``'test'``.
        learned: classes of the checkpoint; None where unknown.
    """
    if _answers_by_labels(model):
        with checking('Classes of the data'):
            found = {who: names for what, dataset in data.items()
                     for who, names in names_by_part(dataset, what).items()}
            check_same_classes({'the checkpoint': learned, **found}, found)
            for what, dataset in data.items():
                loader = cfg.get(f'{"val" if what == "validation" else what}_dataloader')
                for part in parts_of(dataset) if is_main_process() else ():
                    check_same_classes(names_written(part, loader), ['the config'])
        for what, dataset in data.items():
            with checking(f'Heads and labels of the {what}'):
                check_heads(model, dataset, what)
    if _is_classifier(model):
        with checking('Labels of folders'):
            check_same_folders(data)
            for what, dataset in data.items():
                check_names_of_folders(dataset, what)
        for what, dataset in data.items():
            with checking(f'Classes in the data of the {what}'):
                tell_absent_labels(dataset, _num_classes(model), what)


def _is_classifier(model: nn.Module) -> bool:
    return any(base.__name__ == 'BaseClassifier' for base in type(model).__mro__)


def _num_classes(model: nn.Module) -> int | None:
    return getattr(getattr(model, 'head', None), 'num_classes', None)


def _answers_by_labels(model: nn.Module) -> bool:
    """Whether a model's answers are the labels of its data; those of retrieval, tracking and RPN are not."""
    kinds = {base.__name__ for base in type(model).__mro__}
    return 'RPN' not in kinds and bool(kinds & {'BaseClassifier', 'BaseDetector', 'BaseSegmentor'})


def check_heads(model: nn.Module, dataset: Any, what: str) -> None:
    """Raise `PreflightError` if a head of a detector has another number of classes than the data, or a classifier less.

    A classifier with more is warned about: its figures are right. So is a detector of the user's own.
    """
    classes, warn = names_of(dataset), MMLogger.get_current_instance().warning
    name = type(next(parts_of(dataset))).__name__
    if _is_classifier(model):
        number = _num_classes(model)
        check_labels(dataset, number)
        check_tasks(dataset, model.head, what)
        if classes and isinstance(number, int) and number > len(classes):
            warn(f'head ({type(model.head).__name__}) has num_classes={number}, {name} of the {what} has '
                 f'{len(classes)} classes ({some(classes)}): is model.head.num_classes as you want it?')
        return
    if not classes:
        return
    meta = common(getattr(dataset, 'metainfo', None))
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
        in_config = {re.sub('^model.(student|teacher)', 'model.detector', path) if _has_teacher(model) else path:
                     min(right[path.rpartition('.')[2]]) for path in wrong}
        options = ' '.join(f'{path}={number}' for path, number in in_config.items())
        raise PreflightError(f'{text}. Set {options}. To run all the same: --cfg-options preflight.classes=False')


def _has_teacher(model: nn.Module) -> bool:
    """Whether a model is a teacher and a student, which its config has as one detector."""
    return any(base.__name__ == 'SemiBaseDetector' for base in type(model).__mro__)


def _is_head(path: str) -> bool:
    parts = [part for part in path.split('.') if not part.isdigit()]
    return bool(parts) and parts[-1] in ('bbox_head', 'mask_head')
