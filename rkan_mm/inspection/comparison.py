"""Which predictions differ between two runs of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor
from torchvision.ops import box_iou, masks_to_boxes

LEAST_IOU = 0.5
"""By which a box is taken for the same one in another run."""


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


def plain_boxes(instances: InstanceData) -> Tensor:
    """Upright boxes of instances, (N, 4) as x1, y1, x2, y2.

    Around rotated ones (cx, cy, w, h, angle), and around the masks where a detector gives boxes of zeros (SOLO).
    """
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes)
    if boxes.shape[-1] == 5:
        centre, (w, h), angle = boxes[:, :2], boxes[:, 2:4].unbind(1), boxes[:, 4]
        cos, sin = angle.cos().abs(), angle.sin().abs()
        half = torch.stack([w * cos + h * sin, w * sin + h * cos], 1) / 2
        return torch.cat([centre - half, centre + half], 1)
    if 'masks' in instances and isinstance(instances.masks, Tensor) and not boxes.any():
        full = instances.masks.flatten(1).any(1)
        boxes = boxes.clone()
        boxes[full] = masks_to_boxes(instances.masks[full]).to(boxes)
    return boxes


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes (N, 4) with others (M, 4): (N, M), 0 where both are empty."""
    return box_iou(one.float(), other.float()).nan_to_num(0)


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
    boxes = [plain_boxes(run)[own].detach() for run, own in zip(found, strong, strict=True)]
    labels = [run.labels[own] for run, own in zip(found, strong, strict=True)]
    overlap = overlaps(*boxes).numpy()
    overlap[labels[0][:, None].numpy() != labels[1].numpy()] = 0
    kept, left = [], set(range(len(strong[1])))
    for i in np.argsort(-found[0].scores[strong[0]].detach().numpy(), kind='stable'):
        best = max(left, key=lambda j: overlap[i, j], default=None)
        if best is not None and overlap[i, best] >= LEAST_IOU:
            left.remove(best)
            kept.append((int(strong[0][i]), int(strong[1][best])))
    matched = {i for i, _ in kept}
    return Changes(kept, [i for i in strong[0].tolist() if i not in matched], [int(strong[1][j]) for j in sorted(left)])
