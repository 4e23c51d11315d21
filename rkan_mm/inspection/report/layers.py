"""Section of KAN layers with a function for each weight: which matter, how they look, what pruning costs."""

from __future__ import annotations

import torch
from torch import Tensor

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.models.layers import GridBasis
from rkan_mm.visualization import draw_grid, draw_importance, draw_pruning

from ..functions import Index
from ..pruning import pruning_curves
from ..statistics import Statistics
from ..worth import Part
from .study import Study, numbers, percent

GRIDS = 4
"""Layers whose grids are drawn."""


def show_layers(study: Study, part: Part) -> None:
    """All that is said of a model's KAN layers."""
    section = study.page.section(part.title)
    ran = {name: own for name, own in study.ran.items() if name in part.layers}
    if idle := [name for name in part.layers if name not in ran]:
        section.text(f'{len(idle)} of {len(part.layers)} layers did not run on these images: {", ".join(idle[:5])}'
                     + (', ...' if len(idle) > 5 else '.'))
    if not ran:
        return
    rms = {name: own.rms() for name, own in ran.items()}
    total = sum(values.numel() for values in rms.values())
    study.say(f'{total:,} functions of {len(ran)} KAN layers')
    section.table(['layer', 'basis', 'functions', 'not straight, %', 'inputs beyond the range, %', 'pruned, %'], [
        [name, type(own.functions.basis).__name__, len(own.functions), 100 * own.total_nonlinear_share(),
         None if own.overflow is None else 100 * own.overflow,
         100 * own.functions.layer.sparsity]
        for name, own in ran.items()])
    share = [own.total_nonlinear_share() for own in ran.values()]
    study.page.short.append(f'{part.title}: of {total:,} functions in {len(ran)} layers, straight lines leave '
                            f'{percent(min(share))} to {percent(max(share))} % of the variance, by layer.')
    study.page.figure(section, draw_importance(rms), f'{part.title}-importance',
                      'Importance (root mean square over the inputs) of the functions of each layer, and how the '
                      'summed squares are spread over layers.')
    for name, own in ran.items():
        study.page.data['layers'][name] = numbers(own)
    _functions(study, part, rms)
    _grids(study, part, ran)
    if study.wants('pruning') and study.wants('metric'):
        _pruning(study, part)


def most_important(rms: dict[str, Tensor], number: int) -> dict[str, list[Index]]:
    """The most important functions of all layers together, by layer, each layer's from the first on."""
    everything = torch.cat([values.flatten() for values in rms.values()])
    best = everything.topk(min(number, len(everything))).indices.sort().values
    chosen, start = {}, 0
    for name, values in rms.items():
        own = best[(best >= start) & (best < start + values.numel())] - start
        if len(own):
            chosen[name] = list(zip(*(axis.tolist() for axis in torch.unravel_index(own, values.shape)), strict=True))
        start += values.numel()
    return chosen


def _functions(study: Study, part: Part, rms: dict[str, Tensor]) -> None:
    section = study.page.section(f'{part.title}: the most important functions', 3)
    chosen = most_important(rms, study.options.top)
    recorder = study.recorded(chosen)
    for name, indices in chosen.items():
        own = recorder[name]
        study.functions(section, own, f'{name}-functions', f'Functions of {name} among the {study.options.top} most '
                        'important of the model.', indices, name)
        found = study.formulas(section, own, indices)
        study.page.data['functions'][name] = numbers(own, indices, found)


def _grids(study: Study, part: Part, ran: dict[str, Statistics]) -> None:
    with_grid = {name: own for name, own in ran.items() if isinstance(own.functions.basis, GridBasis)}
    if with_grid:
        section = study.page.section(f'{part.title}: grids over their inputs', 3)
        section.text(f'Of {len(with_grid)} layers with a grid, those with the most inputs beyond it.')
        for name, own in sorted(with_grid.items(), key=lambda item: -(item[1].overflow or 0))[:GRIDS]:
            study.page.figure(section, draw_grid(own, name), f'{name}-grid', f'Grid of {name} over its inputs.')


def _pruning(study: Study, part: Part) -> None:
    section, options = study.page.section(f'{part.title}: what pruning would cost', 3), study.options
    try:
        metric = study.metric
        study.say(f'Pruning to {", ".join(f"{100 * s:g} %" for s in options.sparsities)}'
                  + (f', {options.finetune_iters} iterations of training each' if options.finetune_iters else ''))
        curves = pruning_curves(study.subject, metric, options.sparsities, options.finetune_iters,
                                1 if study.subject.is_detector else 32)
    except (OSError, PreflightError, ValueError) as error:
        section.text(f'Not looked at: {error}.')
        return
    first = next(iter(curves['pruned'][0][1]), 'metric')
    drawn = {name: [(sparsity, metrics.get(first, 0.0)) for sparsity, metrics in points]
             for name, points in curves.items()}
    study.page.figure(section, draw_pruning(drawn, first), f'{part.title}-pruning',
                      f'{first} on {metric.num_images} images over the part of all functions that is pruned, the least '
                      'important first.')
    if not options.finetune_iters:
        section.text('Nothing was trained after pruning; --finetune-iters N adds that curve.')
    study.page.data['pruning'] = dict(metric=first, curves=drawn)
