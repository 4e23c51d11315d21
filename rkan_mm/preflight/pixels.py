"""Pictures that reach a model in another scale or order of colours than its mean and std, or otherwise in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from .annotations import some
from .config import is_mm
from .random_steps import steps_of
from .red import warn_in_red

IMAGENET = (123.675, 116.28, 103.53)
"""Its mean in RGB; others round it."""

READING = ('LoadImageFromFile', 'Normalize')
"""Steps that a validation has as the training has them."""


def tell_pixels(model: nn.Module, data: dict[str, Any]) -> None:
    """Warn in red where pictures reach a model in another scale than its mean and std, or in training otherwise.

    Args:
        model: with its data preprocessor.
        data: data sets by what they are for.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    steps = {what: list(steps_of(dataset)) for what, dataset in data.items()}
    if not all(is_mm(type(step)) for each in steps.values() for step in each):
        return  # some may scale pictures, as torchvision's ToTensor does
    normalizing = {what: [step for step in each if type(step).__name__ == 'Normalize' and not _is_identity(step)]
                   for what, each in steps.items()}
    files = any(type(step).__name__ == 'LoadImageFromFile' for each in steps.values() for step in each)
    within = getattr(preprocessor, '_enable_normalize', False) and is_mm(type(preprocessor)) and not _is_identity(
        preprocessor)
    for who in [*([preprocessor] if within else []), *(step for each in normalizing.values() for step in each[:1])]:
        if max(std := _numbers(who.std)) < 1:
            warn_in_red(f'{type(who).__name__} divides pixels of 0 to 255 by std={std}, which is of pixels of 0 to 1: '
                        'give mean and std times 255.')
            break
        if (swapped := _swapped(who)) and files:
            warn_in_red(f'{type(who).__name__} takes {swapped}.')
            break
    if within and any(normalizing.values()):
        warn_in_red(f'Pictures are normalized twice, by Normalize in a pipeline and by {type(preprocessor).__name__}: '
                    'leave Normalize out.')
    read = {what: {_describe(step) for step in each if type(step).__name__ in READING} for what, each in steps.items()}
    for what, found in read.items():
        if read.get('train') and found and (differ := found ^ read['train']):
            warn_in_red(f'Pictures of the {what} are made otherwise than those of the training, with which the model '
                        f'learns: {some(sorted(differ))} is of one alone.')


def _describe(step: Any) -> str:
    if type(step).__name__ == 'Normalize':
        return f'Normalize(mean={_numbers(step.mean)}, std={_numbers(step.std)}, to_rgb={step.to_rgb})'
    return f'LoadImageFromFile(color_type={getattr(step, "color_type", None)!r})'


def _swapped(who: Any) -> str | None:
    """Whether the mean of ImageNet is in another order of colours than the pictures, which come as BGR."""
    mean = _numbers(who.mean)
    if len(mean) != 3 or not np.allclose(sorted(mean), sorted(IMAGENET), atol=1):
        return None
    turned, rgb = getattr(who, 'to_rgb', False) or getattr(who, '_channel_conversion', False), mean[0] > mean[2]
    if bool(turned) == rgb:
        return None
    name = 'bgr_to_rgb' if hasattr(who, '_channel_conversion') else 'to_rgb'
    return (f'the mean of {"RGB" if rgb else "BGR"}, {mean}, from pictures in {"RGB" if turned else "BGR"}: set '
            f'{name}={rgb}, or turn mean and std round')


def _is_identity(step: Any) -> bool:
    return set(_numbers(step.mean)) == {0} and set(_numbers(step.std)) == {1}


def _numbers(values: Any) -> list[float]:
    return [round(value, 3) for value in torch.as_tensor(values).flatten().tolist()]
