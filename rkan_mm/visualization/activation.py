"""Class activation maps and receptive fields, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from .overlay import draw_box, show


def draw_activation_maps(image: np.ndarray, maps: dict[str, np.ndarray | None], title: str | None = None,
                         box: Sequence[float] | None = None) -> Figure:
    """Draw an image, and beside it maps over it.

    Args:
        image: (H, W, 3).
        maps: by name, of any size, see :func:`rkan_mm.inspection.activation_map`; None is said to be missing.
        title: of the figure.
        box: x1, y1, x2, y2 in pixels, drawn on all.

    Example:
        >>> heat = activation_map(model, layer, x, data_samples, BoxTarget(box, label))
        >>> draw_activation_maps(image, {'Grad-CAM': heat}, box=box).savefig('cam.png')
    """
    height = 2.2 * min(1.4, max(0.6, image.shape[0] / image.shape[1]))
    figure = Figure((2.2 * (1 + len(maps)), height + 0.5), layout='constrained')
    axes = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    show(axes[0], image, 'image')
    for axis, (name, heat) in zip(axes[1:], maps.items(), strict=True):
        show(axis, image, name if heat is not None else f'{name}: not found', heat)
    if box is not None:
        for axis in axes:
            draw_box(axis, box, 'white')
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def draw_receptive_fields(fields: dict[str, np.ndarray], title: str | None = None) -> Figure:
    """Draw effective receptive fields of one size on one scale, with the squares that hold 50 and 90 % of each.

    Args:
        fields: by name, see :func:`rkan_mm.inspection.receptive_field`.
        title: of the figure.

    Example:
        >>> field = receptive_field(model, model.backbone.backbone.layer4, images, model.backbone)
        >>> draw_receptive_fields({'layer4': field}).savefig('field.png')
    """
    from rkan_mm.inspection.fields import square_with
    figure = Figure((2.9 * len(fields), 3.2), layout='constrained')
    highest = max(field.max() for field in fields.values())
    for axis, (name, field) in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
        axis.imshow(field, cmap='magma', norm=PowerNorm(0.3, 0, highest))
        sides = [square_with(field, part) for part in (0.5, 0.9)]
        for side, style in zip(sides, ('-', '--'), strict=True):
            start = len(field) // 2 - side / 2
            draw_box(axis, (start, start, start + side, start + side), 'white', style=style)
        axis.set_axis_off()
        axis.set_title(f'{name}\n50 % in {sides[0]} px, 90 % in {sides[1]} px', fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure
