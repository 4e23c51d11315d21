"""The order of a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.models.layers import KANLayer
from rkan_mm.models.layers.basis import BSpline

from ..functions import kan_layers
from ..missing import require
from ..subject import Subject
from .blocks import show_block
from .layers import show_layers
from .study import Options, Study
from .symbolic import show_symbolic
from .where import looked_at, show_field, show_where
from .worth import show_worth


def look(subject: Subject, folder: str | Path, options: Options, say: Callable[[str], None] = print) -> Path:
    """Look into a model and write the page.

    Args:
        subject: the model and what it is given.
        folder: for the page.
        options: see there.
        say: is told what is under way.

    Returns:
        Path of the page.

    Raises:
        PreflightError: a package is missing, a short training is asked for and the config has none, or no KAN layer
            has run.
    """
    _require(subject, options)
    study = Study(subject, folder, options, say)
    layer = looked_at(study) if study.wants('cam') or study.wants('field') else None
    try:
        _show(study, layer)
    except BaseException as error:
        study.page.section('Broken off').text(f'{type(error).__name__}: {error}')
        raise
    finally:  # what was found until then, too
        page = study.page.write()
    return page


def _show(study: Study, layer: tuple[str, nn.Module] | None) -> None:
    runs = show_worth(study) if study.wants('metric') else []
    for part in study.parts:
        if any(isinstance(own, KANLayer) for own in part.layers.values()):
            show_layers(study, part)
        else:
            show_block(study, part, [run for run in runs if run.part in ('', part.name)])
    if study.options.symbolic:
        show_symbolic(study, runs)
    if study.wants('cam') and layer is None:
        study.page.section('Where it looks').text('No module of the model gives maps of features (B, C, H, W).')
    for name, show in (('cam', show_where), ('field', show_field)):
        if layer and study.wants(name):
            show(study, *layer)


def _require(subject: Subject, options: Options) -> None:
    """Packages that are missing are named before minutes of work."""
    if 'formulas' not in options.skip:
        require('sympy', 'A formula')
        if any(isinstance(layer.basis, BSpline) for layer in kan_layers(subject.model).values()):
            require('scipy', 'The formula of a B-spline')
    if 'cam' not in options.skip:
        require('pytorch_grad_cam', 'A class activation map')
    if options.symbolic:
        require('scipy', 'A symbolic fit')
    pruned = any(isinstance(layer, KANLayer) for layer in kan_layers(subject.model).values())
    if options.finetune_iters and pruned and not {'metric', 'pruning'} & {*options.skip}:
        for part in ('train_dataloader', 'optim_wrapper'):
            if not subject.cfg.get(part):
                raise PreflightError(f'{subject.cfg.filename} has no {part}, and --finetune-iters trains: leave the '
                                     'option out, or give it one.')
