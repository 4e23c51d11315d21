"""How the work is spread over KAN layers, and what pruning would cost."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def draw_importance(importances: dict[str, Tensor], title: str | None = None) -> Figure:
    """Draw how importance is spread: over the functions of each layer, and over layers.

    Args:
        importances: of each layer, any shape, e.g. by `Statistics.rms` or `KANLayer.importance`.
        title: of the figure.

    Example:
        >>> draw_importance({name: own.rms() for name, own in recorder.statistics.items()}).savefig('importance.png')
    """
    importances = {name: importance.detach().double().cpu() for name, importance in importances.items()}
    figure = Figure((9, max(3.0, 0.9 + 0.24 * len(importances))), layout='constrained')
    curves, bars = figure.subplots(1, 2)
    for name, importance in importances.items():
        values = np.sort(importance.flatten().numpy())[::-1]
        curves.plot(np.linspace(0, 100, len(values)), np.maximum(values, 1e-12), lw=1.2, label=name)
    highest = max(values.max().item() for values in importances.values())
    curves.set_yscale('log')
    curves.set_ylim(1e-4 * max(highest, 1e-12), 2 * max(highest, 1e-12))
    curves.set_xlabel('functions of the layer, from the most important on, %', fontsize=8)
    curves.set_ylabel('root mean square over the inputs', fontsize=8)
    if len(importances) <= 8:
        curves.legend(fontsize=6, frameon=False)
    names = list(importances)
    energy = np.array([importances[name].square().sum().item() for name in names])
    bars.barh(range(len(names)), 100 * energy / max(energy.sum(), 1e-30), color='#1f4e9c')
    bars.set_yticks(range(len(names)), names, fontsize=6)
    bars.invert_yaxis()
    bars.set_xlabel('of the summed squares of all functions, %', fontsize=8)
    for axis in (curves, bars):
        axis.tick_params(labelsize=6)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def draw_pruning(curves: dict[str, list[tuple[float, float]]], metric: str, title: str | None = None) -> Figure:
    """Draw a metric over the part of functions that is pruned.

    Args:
        curves: by name, pairs of sparsity (0 to 1) and metric.
        metric: its name.
        title: of the figure.

    Example:
        >>> draw_pruning({'pruned': [(0, 51.0), (0.5, 48.0)]}, 'accuracy/top1').savefig('pruning.png')
    """
    figure = Figure((6, 3.2), layout='constrained')
    axis = figure.subplots()
    for name, points in curves.items():
        sparsity, values = zip(*points, strict=True)
        axis.plot(100 * np.array(sparsity), values, 'o-', ms=4, label=name)
    axis.set_xlabel('functions pruned, %', fontsize=8)
    axis.set_ylabel(metric, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
