"""Grids of KAN layers beside the data that they lie under."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rkan_mm.models.layers import GridBasis
from rkan_mm.spread import spread

if TYPE_CHECKING:
    from rkan_mm.inspection import Statistics

ROWS = 48


def draw_grid(statistics: Statistics, title: str | None = None) -> Figure:
    """Draw, for every input channel, the range of the layer's inputs and the points of its grid over it.

    Args:
        statistics: of a layer whose basis has a grid, from a `Recorder`.
        title: of the figure.

    Raises:
        TypeError: the basis has no grid.
        ValueError: the layer has not run.

    Example:
        >>> with Recorder(model) as recorder:
        ...     _ = model(images)
        >>> draw_grid(recorder['fc']).savefig('grid.png')
    """
    basis = statistics.functions.basis
    if not isinstance(basis, GridBasis):
        raise TypeError(f'draw_grid: basis {type(basis).__name__} has no grid')
    low, high = statistics.row_range()
    if statistics.functions.normalization == 'tanh':  # which comes before the grid
        low, high = np.tanh(low), np.tanh(high)
    points = basis.interior().expand(len(low), -1).numpy()
    chosen = spread(len(low), ROWS)
    figure = Figure((6.5, 1.3 + 0.09 * len(chosen)), layout='constrained')
    axis = figure.subplots()
    for place, row in enumerate(chosen):
        axis.plot([low[row], high[row]], [place, place], color='#b9cbe4', lw=5, solid_capstyle='butt',
                  label='inputs' if not place else None)
        axis.plot(points[row], np.full(points.shape[1], place), '|', color='#1f4e9c', ms=5,
                  label='grid' if not place else None)
    axis.set_yticks([])
    axis.set_ylabel(f'{len(chosen)} of {len(low)} channels', fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False, loc='upper right')
    if title:
        figure.suptitle(title, fontsize=9)
    return figure
