"""An exported file beside the model that it was: predictions, the config's metric, time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from rkan_mm.inspection.comparison import changes, plain_boxes
from rkan_mm.inspection.metric import Metric
from rkan_mm.inspection.subject import Subject

from . import files
from .departure import Departure
from .exported import ExportedModel

TOLERANCE = 1e-4
"""By which a probability may differ from PyTorch's, in float32."""

ROUNDS = 5


@dataclass
class Comparison:
    """The file beside PyTorch.

    Args:
        pictures: on which.
        difference: the largest of any score.
        agreement: part of the pictures, 0 to 1, with the same top-1 (classifiers) or the same labels (detectors).
        milliseconds: of a picture, PyTorch's and the file's: the median of rounds that alternate.
        single: whether a picture has one label.
        metrics: of the config's evaluators on the validation set, PyTorch's and the file's.
        boxes: of detectors: how many of PyTorch's the file has, too, and of how many that have an area. Those of one
            class with an IoU of at least 0.5 are the same box.
        pixels: the largest difference of a coordinate of these.
    """

    pictures: int
    difference: float
    agreement: float
    milliseconds: tuple[float, float]
    single: bool
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    boxes: tuple[int, int] | None = None
    pixels: float = 0.0


def compare(subject: Subject, leaving: Departure, path: Path, form: str, eval_images: int | None = None,
            with_metric: bool = True) -> Comparison:
    """Measure a file.

    Args:
        subject: the model, its config and pictures.
        leaving: what was written.
        path: of the file.
        form: its format.
        eval_images: how many of the validation set, evenly spread; None for all.
        with_metric: whether there is a validation set.
    """
    function, info = files.read(path, form)
    info = info or leaving.info  # C has none
    exported = ExportedModel(function, info, leaving.is_bgr)
    if with_metric:
        metric = Metric(subject, eval_images)
        (own, before), (others, after) = metric(subject.model), metric(exported)
        metrics = {name: (own[name], others.get(name, math.nan)) for name in own}  # nothing found, no metric
    else:
        before, after = [*subject.predict()], [*subject.predict(model=exported)]
        metrics = {}
    pairs = [(_predicted(a), _predicted(b)) for a, b in zip(before, after, strict=True)]
    difference = float(np.max([_difference(a[0], b[0]) for a, b in pairs], initial=0))  # nan where one is
    agreement = statistics.fmean(a[1].tolist() == b[1].tolist() for a, b in pairs)
    single = info['task'] == 'classification'
    boxes, pixels = (None, 0.0) if single else _boxes(before, after)
    return Comparison(len(pairs), difference, agreement, _time(subject, leaving, exported), single, metrics, boxes,
                      pixels)


def _predicted(sample: BaseDataElement) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels, of detections the best first."""
    if 'pred_score' in sample:
        return sample.pred_score.cpu().numpy(), sample.pred_label.cpu().numpy()
    instances = sample.pred_instances
    order = instances.scores.argsort(descending=True, stable=True)
    return instances.scores[order].cpu().numpy(), instances.labels[order].cpu().numpy()


def _boxes(before: Sequence[BaseDataElement], after: Sequence[BaseDataElement]) -> tuple[tuple[int, int], float]:
    """How many of the first are among the others, of how many, and the largest difference of these in pixels."""
    total, distances = 0, []
    for own, other in zip(before, after, strict=True):
        boxes = [plain_boxes(each.pred_instances) for each in (own, other)]
        total += int((boxes[0][:, 2:] > boxes[0][:, :2]).all(1).sum())  # without an area none is found again
        distances += [(boxes[0][i] - boxes[1][j]).abs().max().item() for i, j in changes(own, other, 0.0).kept]
    return (len(distances), total), max(distances, default=0.0)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest; what only one has counts whole."""
    size = max(len(a), len(b))
    a, b = (np.pad(each, (0, size - len(each))) for each in (a, b))
    return float(np.abs(a - b).max()) if size else 0.0


def _time(subject: Subject, leaving: Departure, exported: ExportedModel) -> tuple[float, float]:
    arrays = exported.pictures([sample['inputs'] for sample in subject.samples])

    def torch_run(array: np.ndarray) -> None:
        with torch.no_grad():
            leaving.graph(torch.from_numpy(array))

    return in_turns((torch_run, exported.function), arrays)


def in_turns(runs: tuple[Callable, Callable], arrays: list[np.ndarray]) -> tuple[float, float]:
    """Milliseconds of a picture, each one's median of rounds that alternate."""
    times: tuple[list[float], list[float]] = [], []
    for array in arrays[:1] + arrays * ROUNDS:
        for run, kept in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(array)
            kept.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])
