"""What can be known of a run only once its data, model and metrics are built, and before its first step."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from rkan_mm.engine.run_error import PreflightError

from .annotations import some
from .classification import check_labels
from .config import switches
from .datasets import check_same_classes, parts_of
from .trial import check_monitors, try_first
from .weights import innermost

OF_COCO = ('CocoMetric', 'FasterCocoMetric')


class CheckRunHook(Hook):
    """Before a training or a test begins, compare model, data and metrics with each other, and try one image.

    Args:
        test: whether a test follows the training, whose data and metrics are then looked at as well.

    Raises:
        PreflightError: classes differ between data sets, or from those of a head; a label without a class; an
            evaluator with the annotations of other images; what `try_first` finds.
    """

    priority = 'VERY_HIGH'

    def __init__(self, test: bool = False) -> None:
        self.test, self._done = test, False

    def are_done(self) -> bool:
        return self._done

    def before_train(self, runner: Runner) -> None:
        loops = {'train': runner.train_loop}
        if runner.val_loop is not None:
            loops['validation'] = runner.val_loop
        if self.test:
            loops['test'] = runner.test_loop
        self._check(runner, loops)

    def before_test(self, runner: Runner) -> None:
        if not runner.iter:  # no training came before it
            self._check(runner, {'test': runner.test_loop})

    def _check(self, runner: Runner, loops: dict[str, Any]) -> None:
        on, model = switches(runner.cfg), innermost(runner.model)
        data = {what: loop.dataloader.dataset for what, loop in loops.items()}
        if on['classes']:
            check_same_classes({f'the data of the {what}': _classes(dataset) for what, dataset in data.items()})
            for what, dataset in data.items():
                check_heads(model, dataset, what)
        for what, loop in loops.items():
            if what == 'train':
                continue
            if on['evaluator']:
                check_evaluator(loop, what)
            if on['trial']:
                figures = try_first(runner, loop, what)
                if what == 'validation':
                    check_monitors(runner, figures)
        self._done = True


def _classes(dataset: Any) -> tuple[str, ...] | None:
    if any(getattr(part, 'return_classes', False) for part in parts_of(dataset)):
        return None  # the model is given the names
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return tuple(classes) if classes and not isinstance(classes, str) else None


def check_heads(model: nn.Module, dataset: Any, what: str) -> None:
    """Raise `PreflightError` if a head of a detector has another number of classes than the data, or a classifier less.

    A classifier with more is warned about: its figures are right.
    """
    classes = _classes(dataset)
    name = type(next(parts_of(dataset))).__name__
    head = getattr(model, 'head', None)
    if head is not None and not hasattr(model, 'bbox_head'):
        number = getattr(head, 'num_classes', None)
        check_labels(dataset, number)
        if classes and isinstance(number, int) and number > len(classes):
            MMLogger.get_current_instance().warning(
                f'head ({type(head).__name__}) has num_classes={number}, {name} of the {what} has {len(classes)} '
                f'classes ({some(classes)}): is model.head.num_classes as you want it?')
        return
    if not classes:
        return
    wrong = {f'model.{path}': (module, module.num_classes) for path, module in model.named_modules()
             if _is_head(path) and isinstance(getattr(module, 'num_classes', None), int)
             and not getattr(module, 'class_agnostic', False) and module.num_classes != len(classes)}
    if wrong:
        heads = ', '.join(f'{path} ({type(module).__name__}) has num_classes={number}'
                          for path, (module, number) in wrong.items())
        options = ' '.join(f'{path}.num_classes={len(classes)}' for path in wrong)
        raise PreflightError(f'{heads}; {name} of the {what} has {len(classes)} ({some(classes)}). Set {options}. To '
                             'run all the same: --cfg-options preflight.classes=False')


def _is_head(path: str) -> bool:
    parts = [part for part in path.split('.') if not part.isdigit()]
    return bool(parts) and parts[-1] in ('bbox_head', 'mask_head')


def check_evaluator(loop: Any, what: str) -> None:
    """Raise `PreflightError` if COCO's metric reads annotations of other images than those that will be predicted."""
    dataset = loop.dataloader.dataset
    for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
        coco = getattr(metric, '_coco_api', None)
        if type(metric).__name__ not in OF_COCO or coco is None or not hasattr(dataset, 'get_data_info'):
            continue
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if not all('img_id' in info and 'img_path' in info for info in infos):
            continue
        name = type(metric).__name__
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
        if missing := [str(theirs[key]['file_name']) for key in theirs if key not in mine]:
            raise PreflightError(f'{name} of the {what} would count the objects of {len(missing)} images as missed, '
                                 'which its data set leaves out (by filter_cfg or indices), such as '
                                 f'{some(missing[:3])}. {cure}')


def _is_of(info: dict, image: dict | None) -> bool:
    """Whether an image of a data set is one of an evaluator's json."""
    return image is not None and info['img_path'].endswith(str(image['file_name']).lstrip('./'))


def _shares_boxes(info: dict, coco: Any) -> bool:
    boxes = {(round(x), round(y)) for x, y, *_ in (annotation['bbox'] for annotation in coco.imgToAnns[info['img_id']])}
    mine = {(round(x), round(y)) for x, y, *_ in (instance['bbox'] for instance in info.get('instances', ()))}
    return not mine or bool(mine & boxes)
