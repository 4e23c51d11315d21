"""Heat maps and boxes on an image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle


def read_rgb(path: str) -> np.ndarray:
    """An image from the disk, (H, W, 3) uint8.

    Raises:
        OSError: it cannot be read.
    """
    image = mmcv.imread(path, channel_order='rgb')
    if image is None:
        raise OSError(f'{path!r} cannot be read as an image')
    return image


def class_name(classes: Sequence[str] | None, label: int) -> str:
    """Name of a class where it is known.

    Example:
        >>> class_name(('disc', 'ring'), 1), class_name(None, 1)
        ('ring', 'class 1')
    """
    return classes[label] if classes and label < len(classes) else f'class {label}'


def show(axis: Axes, image: np.ndarray, title: str = '', heat: np.ndarray | None = None, cmap: str = 'turbo',
         limits: tuple[float, float] | None = None):
    """An image without ticks; over it a map of any size, stretched to it.

    Returns:
        What a colour bar can be made of.
    """
    axis.set_axis_off()
    axis.set_title(title, fontsize=8)
    drawn = axis.imshow(image)
    if heat is not None:
        large = cv2.resize(np.asarray(heat, dtype=np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        low, high = limits or (None, None)
        drawn = axis.imshow(large, cmap=cmap, alpha=0.55, vmin=low, vmax=high)
    return drawn


def draw_box(axis: Axes, box: Sequence[float], colour: str, label: str = '', style: str = '-') -> None:
    """A box, x1, y1, x2, y2 in pixels, with a label over it."""
    x1, y1, x2, y2 = map(float, box)
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.3, ls=style))
    if label:
        axis.text(x1, y1, label, fontsize=6, color='white', va='bottom', clip_on=True,
                  bbox=dict(facecolor=colour, edgecolor='none', pad=0.6, alpha=0.85))
