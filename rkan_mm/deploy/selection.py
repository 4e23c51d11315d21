"""The best boxes of a batch in tensors of fixed size, in operations that exporters know."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rkan_mm.models.ops import static_shape

CANDIDATES = 3000
"""Boxes of an image that take part in the last non-maximum suppression, at most."""


def topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest along the last dimension and where they stood; -1 and 0 where there are fewer.

    Values are above -1.
    """
    values, index = F.pad(values, (0, k), value=-1.0).topk(k)
    return values, index * (values > -1)


def rows(values: Tensor, index: Tensor) -> Tensor:
    """``values`` (B, N, D) at ``index`` (B, K) -> (B, K, D)."""
    return values.gather(1, index.unsqueeze(2).expand(-1, -1, static_shape(values)[2]))


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, size: tuple[int, int],
             iou_threshold: float, k: int) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within each image and group, for a batch at once.

    Args:
        boxes: (B, N, 4) as x1, y1, x2, y2, within the image.
        scores: (B, N), at least 0.
        groups: (B, N), integers from 0: boxes of other groups do not suppress each other.
        valid: (B, N), whether to consider them at all.
        size: height and width of the image.
        iou_threshold: above it the box of lower score goes.
        k: how many to keep.

    Returns:
        Scores in descending order, -1 behind the last, and where they stood: (B, k) each.
    """
    from torchvision.ops import nms
    batch, count = scores.shape
    height, width = size
    images = torch.arange(batch, device=boxes.device).to(boxes.dtype)
    # images below each other, groups beside each other, so that they do not meet; what is not valid at the left of all
    left = (groups.to(boxes.dtype) + 1) * (width + 1)
    top = (images * (height + 1))[:, None].expand(batch, count)
    moved = boxes + torch.stack([left, top, left, top], 2)
    aside = torch.stack([torch.zeros_like(top), top, torch.ones_like(top), top + 1], 2)
    moved = torch.where(valid.unsqueeze(2), moved, aside)
    scores = torch.where(valid, scores, torch.zeros_like(scores))
    kept = nms(moved.reshape(-1, 4), scores.reshape(-1), iou_threshold)
    is_kept = torch.zeros_like(scores).reshape(-1).index_fill(0, kept, 1.0).reshape(batch, count)
    return topk(torch.where((is_kept > 0) & valid, scores, -torch.ones_like(scores)), k)
