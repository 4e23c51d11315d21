"""The order of steps in detectors' pipelines: boxes that stay where they were while their picture is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .config import is_mm
from .random_steps import MOVING, acts, within
from .red import warn_in_red

SCALING = ('Resize', 'RandomResize', 'RandomChoiceResize', 'FixScaleResize', 'FixShapeResize', 'RandomSquareResize')

OF_PIPELINE = ('VOCMetric',)
"""Metrics that compare the boxes of the pipeline with predictions in the picture as it was."""


def tell_steps(data: dict[str, Any], metrics: dict[str, Sequence[Any]]) -> None:
    """Warn in red of steps of detectors' pipelines that leave boxes and pictures apart, or train another shape.

    Args:
        data: data sets by what they are for.
        metrics: of the validation and the test.
    """
    for what, dataset in data.items():
        for steps in _pipelines(dataset):
            names = [type(step).__name__ for step in steps]
            if 'LoadAnnotations' not in names or not all(is_mm(type(step)) for step in steps):
                continue
            place = names.index('LoadAnnotations')
            before, after = (_changing(part) for part in (steps[:place], steps[place:]))
            if what == 'train' and before:
                warn_in_red(f'The pipeline of the train has LoadAnnotations behind {", ".join(before)}: boxes stay '
                            'where they were before. Put it directly behind the step that loads pictures.')
            judging = [type(each).__name__ for each in metrics.get(what, ()) if type(each).__name__ in OF_PIPELINE]
            if judging and after:
                warn_in_red(f'{judging[0]} of the {what} compares predictions in the picture as it was with boxes that '
                            f'{", ".join(after)} changes: put LoadAnnotations behind it.')
    _tell_shapes(data)


def _tell_shapes(data: dict[str, Any]) -> None:
    """Whether pictures keep their proportions in training, and do not when they are predicted, or the reverse."""
    keeping = {what: [keeps for steps in _pipelines(dataset) for keeps in _keeping(steps)]
               for what, dataset in data.items()}
    trained = set(keeping.get('train', ()))
    for what, found in keeping.items():
        if len(trained) == 1 and found and trained.isdisjoint(found):
            warn_in_red(f'Pictures keep their proportions in the {"train" if True in trained else what} alone '
                        f'(keep_ratio of Resize): objects of the {what} are of other shapes than those that are '
                        'learned.')


def _pipelines(dataset: Any) -> Iterator[list]:
    """The steps of a data set, and of each within it."""
    given = getattr(getattr(dataset, 'pipeline', None), 'transforms', getattr(dataset, 'pipeline', None))
    if isinstance(given, (list, tuple)) and given:
        yield list(given)
    for inner in [*(getattr(dataset, 'datasets', None) or ()), getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from _pipelines(inner)


def _changing(steps: Sequence[Any]) -> list[str]:
    names = [type(step).__name__ for step in steps if acts(step)]
    return [name for name in names if name in MOVING + SCALING]


def _keeping(steps: Sequence[Any]) -> Iterator[bool]:
    for step in (inner for given in steps for inner in within(given)):
        resize = getattr(step, 'resize', step)
        if type(step).__name__ in SCALING and isinstance(keeps := getattr(resize, 'keep_ratio', None), bool):
            yield keeps
