"""Figures as images."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def rendered(figure: Figure, dpi: int = 90) -> np.ndarray:
    """A figure as an image, (H, W, 3) uint8, without a window.

    Example:
        >>> runner.visualizer.add_image('kan1', rendered(draw_functions(model.kan1)))
    """
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
