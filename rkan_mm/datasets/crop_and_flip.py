"""Random crops and flips of a whole batch. It registers with mmpretrain, and is imported by ``custom_imports``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor


@BATCH_AUGMENTS.register_module()
class CropAndFlip:
    """Pad with zeros, crop each image to its size at a place of its own, and flip half of them from left to right.

    For `CachedDataset`, whose pipeline must not be random: ``model.train_cfg=dict(augments=dict(type='CropAndFlip'))``.
    Images are normalised already, so zeros are the mean colour.

    Args:
        padding: pixels on each side; 0 only flips.

    Example:
        >>> inputs, scores = CropAndFlip(padding=4)(torch.rand(8, 3, 32, 32), torch.eye(8))
        >>> inputs.shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, padding: int = 4) -> None:
        self.padding = padding

    def __call__(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and one-hot labels (B, classes), which stay."""
        batch, _, height, width = inputs.shape
        rows, columns = (torch.randint(2 * self.padding + 1, (batch, 1), device=inputs.device)
                         + torch.arange(size, device=inputs.device) for size in (height, width))
        flipped = torch.rand(batch, 1, device=inputs.device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
        padded = F.pad(inputs, [self.padding] * 4)
        image = torch.arange(batch, device=inputs.device)[:, None, None]
        crops = padded.movedim(1, -1)[image, rows[:, :, None], columns[:, None]]  # (B, H, W, C)
        return crops.movedim(-1, 1).contiguous(), scores.float()
