"""Predictions of two or more runs of a model side by side, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from mmengine.structures import BaseDataElement

from .overlay import class_name, draw_box, show

KEPT, LOST, NEW = '#4c8c4a', '#c0392b', '#d98e02'


def draw_changes(image: np.ndarray, runs: dict[str, BaseDataElement], classes: Sequence[str] | None = None,
                 score_thr: float = 0.3, title: str | None = None) -> Figure:
    """Draw what the first run and the others predict for an image.

    Boxes that a run has in common with the first are green, those that it alone has orange; those that it has lost are
    dashed and red. For classifiers the panels say the class and its score.

    Args:
        image: (H, W, 3).
        runs: predictions by name, on the CPU; the others are compared with the first.
        classes: their names.
        score_thr: boxes with less are left out.
        title: of the figure.

    Example:
        >>> with without_block(model.backbone.bridges['layer4']):
        ...     off = model.test_step(data)[0]
        >>> draw_changes(image, {'as trained': trained, 'off': off}).savefig('changes.png')
    """
    from rkan_mm.inspection.comparison import changes, plain_boxes

    def label(number: int, score: float) -> str:
        return f'{class_name(classes, number)} {score:.2f}'

    height = 3.0 * min(1.3, max(0.55, image.shape[0] / image.shape[1]))
    figure = Figure((3.0 * len(runs), height + 0.5), layout='constrained')
    (first, before), *_ = runs.items()
    for axis, (name, run) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        found = changes(before, run, score_thr)
        if 'pred_label' not in run and 'pred_instances' not in run:
            show(axis, image, name)
            continue
        if 'pred_instances' not in run:
            number = int(run.pred_score.argmax())  # of several labels the surest
            show(axis, image, f'{name}: {label(number, float(run.pred_score[number]))}')
            axis.title.set_color(KEPT if found.kept else LOST)
            continue
        show(axis, image, name if name == first else f'{name}: {len(found.lost)} lost, {len(found.new)} new')
        own, old = run.pred_instances, before.pred_instances
        for places, instances, colour, style in (([j for _, j in found.kept], own, KEPT, '-'),
                                                 (found.new, own, NEW, '-'), (found.lost, old, LOST, '--')):
            boxes = plain_boxes(instances)
            for i in places:
                draw_box(axis, boxes[i].tolist(), colour, label(int(instances.labels[i]), float(instances.scores[i])),
                         style)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure
