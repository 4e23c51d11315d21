"""A trained model as it leaves: its graph, an example, and what the file says of both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rkan_mm
from rkan_mm.inspection.subject import Subject
from rkan_mm.preflight.red import warn_in_red

from . import files
from .classifier import ClassifierGraph
from .detector import DetectorGraph
from .errors import UnsupportedModelError
from .exported import ExportedModel
from .fusing import fuse
from .int8 import round_weights
from .pictures import gives_bgr, preparation

LEAST = (288, 384)
"""Height and width, at least, with which a detector of any size is traced: down to strides of 128 no map has a side of
one pixel, which `torch.export` would take for a constant."""


@dataclass
class Departure:
    """What `files.write` takes.

    Args:
        graph: pictures in, predictions out.
        info: the file's metadata.
        example: (B, C, H, W), uint8.
        is_bgr: whether the config's pipeline gives pictures in BGR.
    """

    graph: Any
    info: dict[str, Any]
    example: Tensor
    is_bgr: bool

    def pictures(self, samples: Sequence[dict]) -> list[np.ndarray]:
        """Prepared samples as the file takes them."""
        stand_in = ExportedModel(lambda image: (), self.info, self.is_bgr)
        return stand_in.pictures([sample['inputs'] for sample in samples])

    def write(self, path: Path, form: str, fp16: bool = False, opset: int = files.OPSET,
              rounded: str = '') -> None:
        """Write the file, fused, in half precision or with rounded weights if asked for; the graph remains as it is.

        Raises:
            UnsupportedModelError: see `files.write`; or the opset is too old.
        """
        if form == 'onnx' and opset < self.graph.least_opset:
            raise UnsupportedModelError(f'{type(self.graph.model).__name__} leaves from opset {self.graph.least_opset} '
                                        f'on: --opset {opset} cannot express it.')
        graph = copy.deepcopy(self.graph)
        fuse(graph.model)
        if rounded:
            print(f'rounded to 8 bits: {", ".join(round_weights(graph.model, rounded))}')
        if fp16:
            graph.model.half()
        files.write(graph, self.example, path, form, self.info, self.info['size'] is None, opset)


def departure(subject: Subject, dynamic: bool = False) -> Departure:
    """Prepare a model to be exported.

    Args:
        subject: the model, its config and pictures.
        dynamic: whether batch, height and width may vary; else it is one picture of the size that the test pipeline
            gives, or, where that varies, of the smallest square that holds all.

    Raises:
        UnsupportedModelError: the model has a part for which there is no form to export, or pictures are not of 8 bits.
    """
    pipeline = subject.pipeline
    is_bgr = gives_bgr(pipeline)
    graph: Any = (DetectorGraph if subject.is_detector else ClassifierGraph)(subject.model, is_bgr)
    steps: list[dict] | None = None
    try:
        steps = preparation(pipeline)
    except UnsupportedModelError as error:
        warn_in_red(f'{error} Who runs the file must prepare pictures as this config does.')
    classes = subject.classes or [str(i) for i in range(graph.num_classes)]
    info: dict[str, Any] = dict(
        task=graph.task, classes=classes, outputs=graph.outputs, preparation=steps, size=None,
        blank=graph.normalize.blank, config=Path(subject.cfg.filename or '').name,
        made_by=f'rkan_mm {rkan_mm.__version__}')
    if subject.is_detector:
        info['mask_threshold'] = graph.mask_threshold
    first = subject.samples[0]['inputs']
    lowest, highest = float(first.min()), float(first.max())
    if first.dtype != torch.uint8 and (lowest < 0 or highest > 255 or highest <= 1):
        raise UnsupportedModelError(
            f'The test pipeline gives pictures of {lowest:.4g} to {highest:.4g}, and an exported file takes 8 bits, 0 '
            'to 255: leave normalisation to the data_preprocessor, and load pictures of 8 bits.')
    info['channels'] = first.shape[0]
    if dynamic:  # sizes that differ, so that no exporter takes them for one
        divisor = graph.normalize.divisor
        least = LEAST if subject.is_detector else (64, 64)
        height, width = (max(n, m // divisor * divisor) for n, m in zip(least, first.shape[1:], strict=True))
        example = torch.zeros(2, first.shape[0], height, width + (divisor if divisor > 1 else 32), dtype=torch.uint8)
        part = first[:, :height, :width]
        example[:, :, :part.shape[1], :part.shape[2]] = part
    else:
        info['size'] = _size(subject, steps)
        example = torch.from_numpy(ExportedModel(lambda image: (), info, is_bgr).pictures([first])[0])
    return Departure(graph, info, example, is_bgr)


def _size(subject: Subject, steps: list[dict] | None) -> list[int]:
    """Width and height that hold every picture as the test pipeline leaves it."""
    last = steps[-1] if steps else {}
    if last.get('fit') == 'inside':
        return [max(last['size'])] * 2
    shapes = {tuple(sample['inputs'].shape[:0:-1]) for sample in subject.samples}
    if len(shapes) > 1:
        raise UnsupportedModelError(f'The test pipeline gives pictures of several sizes ({_some(shapes)}, width by '
                                    'height): export with --dynamic.')
    return [*shapes.pop()]


def _some(shapes: set[tuple[int, int]]) -> str:
    return ', '.join(f'{width} x {height}' for width, height in sorted(shapes)[:3])
