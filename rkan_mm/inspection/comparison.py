"""Which predictions differ between two runs of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mmengine.structures import BaseDataElement
from torchvision.ops import box_iou

from .cam import LEAST_IOU


@dataclass
class Changes:
    """Of one image, places in the two lists of predictions with at least the score.

    Args:
        kept: pairs of the same class that overlap by an IoU of at least 0.5.
        lost: only in the first run.
        new: only in the second one.
    """

    kept: list[tuple[int, int]]
    lost: list[int]
    new: list[int]

    def __len__(self) -> int:
        return len(self.lost) + len(self.new)


def changes(before: BaseDataElement, after: BaseDataElement, score_thr: float = 0.3) -> Changes:
    """Compare the boxes of a detector, or the class of a classifier; boxes are matched from the best score down.

    Args:
        before, after: predictions of the two runs for one image, on the CPU.
        score_thr: boxes with less do not count.
    """
    if 'pred_instances' not in before:
        if 'pred_label' not in before:  # e.g. of a segmentor
            return Changes([], [], [])
        same = before.pred_label.equal(after.pred_label)
        return Changes([(0, 0)] if same else [], [] if same else [0], [] if same else [0])
    found = [run.pred_instances for run in (before, after)]
    strong = [(run.scores >= score_thr).nonzero().flatten() for run in found]
    boxes, labels = ([getattr(run[name], 'tensor', run[name])[own] for run, own in zip(found, strong, strict=True)]
                     for name in ('bboxes', 'labels'))
    overlap = box_iou(*(each.float() for each in boxes)).numpy()
    overlap[labels[0][:, None].numpy() != labels[1].numpy()] = 0
    kept, left = [], set(range(len(strong[1])))
    for i in np.argsort(-found[0].scores[strong[0]].numpy(), kind='stable'):
        best = max(left, key=lambda j: overlap[i, j], default=None)
        if best is not None and overlap[i, best] >= LEAST_IOU:
            left.remove(best)
            kept.append((int(strong[0][i]), int(strong[1][best])))
    matched = {i for i, _ in kept}
    return Changes(kept, [i for i in strong[0].tolist() if i not in matched], [int(strong[1][j]) for j in sorted(left)])
