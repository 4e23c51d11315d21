"""The order of a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rkan_mm.models.layers import KANLayer

from ..missing import require
from ..subject import Subject
from .blocks import show_block
from .layers import show_layers
from .study import Options, Study
from .symbolic import show_symbolic
from .where import show_field, show_where
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
        PreflightError: a package is missing, or no KAN layer has run.
    """
    if 'formulas' not in options.skip:
        require('sympy', 'A formula')
    if 'cam' not in options.skip:
        require('pytorch_grad_cam', 'A class activation map')
    study = Study(subject, folder, options, say)
    runs = show_worth(study) if study.wants('metric') else []
    for part in study.parts:
        if any(isinstance(layer, KANLayer) for layer in part.layers.values()):
            show_layers(study, part)
        else:
            show_block(study, part, [run for run in runs if run.part in ('', part.name)])
    if options.symbolic:
        show_symbolic(study, runs)
    if study.wants('cam'):
        show_where(study)
    if study.wants('field'):
        show_field(study)
    return study.page.write()
