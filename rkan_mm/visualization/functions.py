"""Curves of a KAN layer's functions over the inputs that they really have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from rkan_mm.models.layers import GridBasis

if TYPE_CHECKING:
    from rkan_mm.inspection import Statistics

BINS, POINTS, BEYOND = 80, 300, 0.12
COLOURS = dict(curve='#1f4e9c', line='#d95f02', data='#b9cbe4', unused='#e6e6e6', grid='#7a7a7a', formula='#c0392b')


def draw_functions(layer: nn.Module, statistics: Statistics | None = None,
                   indices: Sequence[tuple[int, ...]] | None = None, title: str | None = None, columns: int = 3,
                   formulas: Mapping[tuple[int, ...], Callable] | None = None) -> Figure:
    """Draw functions of a KAN layer; those of a shared kernel (RKAN's) are laid out as the kernel that they are.

    With statistics each stands over the histogram of its inputs (heights are roots of counts), the range without
    inputs is grey, the best straight line dashed, and its title says which part of its variance that line leaves.
    Points of a grid are marked at the lower edge.

    Args:
        layer: a KAN layer.
        statistics: of this layer, from a `Recorder`.
        indices: functions to draw; None for the whole kernel, or else for the first nine.
        title: of the figure.
        columns: where functions are no kernel.
        formulas: by index, functions of a tensor that are drawn dotted beside the layer's own.

    Raises:
        TypeError: not a KAN layer.

    Example:
        >>> with Recorder(model) as recorder:
        ...     _ = model(images)
        >>> draw_functions(model.kan1, recorder['kan1']).savefig('kan1.png')
    """
    from rkan_mm.inspection import LayerFunctions
    functions = statistics.functions if statistics is not None else LayerFunctions(layer)
    whole = functions.shared and indices is None
    indices = list(indices) if indices is not None else functions.indices()[:None if whole else 9]
    if whole:
        rows, columns = functions.shape
    else:
        columns = min(columns, max(1, len(indices)))
        rows = math.ceil(len(indices) / columns)
    figure = Figure((2.9 * columns + 0.4, 2.1 * rows + 0.5), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, sharex=whole, sharey=whole)
    inputs = statistics if statistics is not None and statistics.calls else None
    share, lines = (inputs.nonlinear_share(), inputs.lines()) if inputs is not None else (None, None)
    ranges = {index: _range(functions, inputs, index) for index in indices}
    if whole:
        ends = [*zip(*ranges.values(), strict=True)]
        ranges = dict.fromkeys(indices, (min(ends[0]), max(ends[1])))
    for place, axis in enumerate(axes.flat):
        if place >= len(indices):
            axis.set_axis_off()
            continue
        index = indices[place]
        low, high = ranges[index]
        beyond = BEYOND * (high - low)
        x = torch.linspace(low - beyond, high + beyond, POINTS, dtype=torch.float64)
        fixed = torch.zeros_like(x) if functions.two_arguments else x  # the base branch at 0, the functions over u
        _background(axis, functions, inputs, index, (x[0].item(), x[-1].item()))
        label = functions.label(index)
        if lines is not None and share is not None:
            slope = lines.slope if lines.slope_u is None else lines.slope_u
            axis.plot(x, lines.intercept[index] + slope[index] * x, '--', color=COLOURS['line'], lw=1.2,
                      label='best straight line')
            left = share[index].item()
            label += '   constant' if math.isnan(left) else f'   {100 * left:.1f} % not straight'
        axis.plot(x, functions.curve(index, fixed, x), color=COLOURS['curve'], lw=2, label='function')
        if formulas and index in formulas:
            axis.plot(x, formulas[index](x), ':', color=COLOURS['formula'], lw=2, label='formula')
        axis.set_title(label, fontsize=8)
        axis.margins(x=0)
        axis.tick_params(labelsize=7)
        axis.axhline(0, color='0.7', lw=0.5, zorder=0.5)
    for axis in axes[-1]:
        axis.set_xlabel('u' if functions.two_arguments else 'x', fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5 if columns > 1 else 2, fontsize=7, frameon=False)
    return figure


def _range(functions, statistics: Statistics | None, index: tuple[int, ...]) -> tuple[float, float]:
    """Of the inputs, with the grid where there is one; without inputs a usual one."""
    if statistics is not None:
        low, high = _seen(functions, statistics, index)[1:]
    else:
        low, high = (-3.0, 3.0) if not isinstance(functions.basis, GridBasis) else (math.inf, -math.inf)
    if isinstance(functions.basis, GridBasis):
        points = functions.basis.interior()
        row = functions.row(index) if len(points) > 1 else 0
        scale = math.atanh if functions.normalization == 'tanh' else float
        ends = [point for point in (points[row, 0].item(), points[row, -1].item())
                if functions.normalization != 'tanh' or abs(point) < 0.999]
        low, high = min([low, *map(scale, ends)]), max([high, *map(scale, ends)])
    if not math.isfinite(low):
        low, high = -3.0, 3.0
    return (low, high) if high > low else (low - 1, high + 1)


def _seen(functions, statistics: Statistics, index: tuple[int, ...]) -> tuple[Tensor, float, float]:
    """Inputs of a function, their least and their greatest; without inf and NaN, which fp16 or a bad picture bring."""
    samples = statistics.samples(index)[1 if functions.two_arguments else 0]
    low, high = statistics.range(index)
    if not math.isfinite(low - high):
        samples = samples[samples.isfinite()]
        low, high = (samples.min().item(), samples.max().item()) if len(samples) else (math.inf, -math.inf)
    return samples, low, high


def _background(axis: Axes, functions, statistics: Statistics | None, index: tuple[int, ...],
                ends: tuple[float, float]) -> None:
    if isinstance(functions.basis, GridBasis) and functions.normalization != 'tanh':
        points = functions.basis.interior()
        points = points[functions.row(index) if len(points) > 1 else 0]
        axis.plot(points, np.zeros(len(points)), '|', color=COLOURS['grid'], ms=6, clip_on=False,
                  transform=axis.get_xaxis_transform(), label='grid')
    if statistics is None:
        return
    samples, low, high = _seen(functions, statistics, index)
    if low > high:
        return
    for start, stop in ((ends[0], low), (high, ends[1])):
        axis.axvspan(start, stop, color=COLOURS['unused'], lw=0, zorder=0)
    if len(samples) and high > low:
        counts, edges = np.histogram(samples, BINS, (low, high))
        heights = np.sqrt(counts / max(1, counts.max()))
        axis.fill_between(np.repeat(edges, 2)[1:-1], 0, 0.85 * np.repeat(heights, 2), color=COLOURS['data'], lw=0,
                          transform=axis.get_xaxis_transform(), zorder=0.2, label='inputs')
