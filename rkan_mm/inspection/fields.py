"""The effective receptive field of a stage (arXiv 1701.04128): which pixels move the middle of its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rkan_mm.models.backbones.bridged_stage import feature_map, token_size

from .functions import unwrap
from .swap import at_rest


def receptive_field(model: nn.Module, layer: nn.Module, images: Sequence[Tensor],
                    run: Callable[[Tensor], Any]) -> np.ndarray:
    """Size of the gradient of the middle of a layer's output by each pixel, averaged over images, 1 in sum.

    Args:
        model: the model. It is left as it was.
        layer: gives maps (B, C, H, W), or tokens with their height and width beside them.
        images: (1, 3, H, W) each, as the model's preprocessor gives them.
        run: calls what leads to the layer, e.g. ``model.backbone``.

    Returns:
        (S, S) around the pixel in the middle, with S the least side of the images, made odd.

    Raises:
        ValueError: the layer gives no maps.
    """
    side = min(min(image.shape[2:]) for image in images)
    half = (side - 1) // 2
    total = np.zeros((2 * half + 1, 2 * half + 1))
    kept = []
    handle = layer.register_forward_hook(
        lambda module, args, out: kept.append(feature_map(out, token_size(args, {}))))
    try:
        with at_rest(unwrap(model)), torch.enable_grad():
            for image in images:
                kept.clear()
                image = image.detach().clone().requires_grad_()
                run(image)
                if not kept or not isinstance(kept[-1], Tensor) or kept[-1].dim() != 4:
                    raise ValueError(f'receptive_field: {type(layer).__name__} gives no feature maps (B, C, H, W)')
                rows, columns = (size // 2 for size in kept[-1].shape[2:])
                (gradient,) = torch.autograd.grad(kept[-1][..., rows, columns].sum(), image)
                size = gradient.abs().sum((0, 1)).double().cpu().numpy()
                # the pixel in the middle of the output's place
                place = [int((i + 0.5) * n / m) for i, n, m in
                         zip((rows, columns), image.shape[2:], kept[-1].shape[2:], strict=True)]
                padded = np.pad(size, half)
                found = padded[place[0]:place[0] + 2 * half + 1, place[1]:place[1] + 2 * half + 1]
                total += found / max(found.sum(), 1e-30)
    finally:
        handle.remove()
    return total / len(images)


def square_with(field: np.ndarray, part: float) -> int:
    """Side in pixels of the least square around the middle that holds a part of a receptive field.

    Example:
        >>> square_with(np.full((5, 5), 0.04), 0.3)
        3
    """
    middle = len(field) // 2
    for half in range(middle + 1):
        inside = field[middle - half:middle + half + 1, middle - half:middle + half + 1].sum()
        if inside >= part * field.sum() - 1e-12:
            return 2 * half + 1
    return len(field)
