"""Steps of a pipeline that belong to training: in a validation or test they make figures of other pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rkan_mm.engine.run_error import PreflightError

from .config import is_mm
from .red import warn_in_red

MOVING = ('RandomFlip', 'RandomCrop', 'MinIoURandomCrop', 'RandomCenterCropPad', 'Expand', 'RandomAffine',
          'RandomShift', 'Mosaic', 'CachedMosaic', 'MixUp', 'CachedMixUp', 'CopyPaste')
"""Of detectors; where objects go by them is not undone in the predictions, as a change of size is."""

CHANGING = ('PhotoMetricDistortion', 'YOLOXHSVRandomAug', 'AutoAugment', 'RandAugment', 'TrivialAugment', 'ColorJitter',
            'Lighting', 'CutOut', 'Cutout', 'Albu', 'Albumentations', 'Solarize', 'Posterize')
"""Others whose names do not begin with Random."""


def check_steps(model: nn.Module, dataset: Any, what: str) -> None:
    """Raise `PreflightError` if a detector is judged on pictures that mm's random steps have moved; warn of others.

    Args:
        model: that predicts.
        dataset: of the validation or test.
        what: ``'validation'`` or ``'test'``, for messages.
    """
    steps = [step for given in steps_of(dataset) for step in within(given) if is_mm(type(step)) and acts(step)]
    names = list(dict.fromkeys(type(step).__name__ for step in steps))
    moving = [name for name in names if name in MOVING]
    detector = any(base.__name__ == 'BaseDetector' for base in type(model).__mro__)
    if moving and detector and is_mm(type(model)):
        raise PreflightError(f'The pipeline of the {what} has {", ".join(moving)}, and boxes are predicted where the '
                             'objects have gone, but compared with where they were: take it out, or test with --tta. '
                             'To run all the same: --cfg-options preflight.evaluator=False')
    if random := [name for name in names if name in MOVING + CHANGING or name.startswith('Random')]:
        warn_in_red(f'The pipeline of the {what} has {", ".join(random)}, which changes pictures by chance: its '
                    'figures are not those of the pictures as they are.')


def steps_of(dataset: Any) -> Iterator[Any]:
    """Of the pipelines of a data set and of those within; what test-time augmentation does is undone by it."""
    pipeline = getattr(dataset, 'pipeline', None)
    given = getattr(pipeline, 'transforms', pipeline)
    yield from given if isinstance(given, (list, tuple)) else ()
    for inner in [*(getattr(dataset, 'datasets', None) or ()), getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from steps_of(inner)


def within(step: Any) -> Iterator[Any]:
    """A step and those that it chooses from."""
    yield step
    if type(step).__name__.startswith(('RandomApply', 'RandomChoice', 'RandomOrder', 'Compose')):
        inner = getattr(step, 'transforms', ())
        for each in getattr(inner, 'transforms', inner):
            yield from within(each)


def acts(step: Any) -> bool:
    """Whether a step is on and not of probability 0."""
    prob = getattr(step, 'prob', None)
    return not getattr(step, 'test_mode', False) and (sum(prob) if isinstance(prob, (list, tuple)) else prob) != 0
