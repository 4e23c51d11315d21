"""What the sections of a page share: the model, what was recorded of it, and the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import rkan_mm
from rkan_mm.engine.run_error import PreflightError
from rkan_mm.visualization import draw_functions

from ..branch import BranchRecorder
from ..formulas import formula
from ..functions import Index, kan_layers
from ..metric import Metric
from ..statistics import Recorder, Statistics, few
from ..subject import Subject, light
from ..worth import parts
from .page import Page, Section

SECTIONS = ('formulas', 'metric', 'cam', 'field', 'pruning')
"""Parts of the page that can be left out."""
MOST_INPUTS, INPUTS = 100_000, 10_000_000
"""Inputs that are kept of a function, and of all of them together."""
DATA_POINTS = 64
"""Of a curve in the json."""
MOST_DRAWN = 30
"""Functions in one figure."""


@dataclass
class Options:
    """What is looked at.

    Args:
        eval_images: images of the validation set for the metric; None for all.
        top: functions of KAN layers that are drawn, the most important ones.
        boxes: maps of where the model looks.
        score_thr: boxes with less are left out.
        cam_layer: module whose features are looked at; None for the last stage with a block.
        sparsities: parts of the functions that are pruned.
        finetune_iters: iterations of training behind pruning.
        symbolic: functions that simple formulas are fitted to, the most important ones; 0 for none.
        skip: of `SECTIONS`.
    """

    eval_images: int | None = 20
    top: int = 9
    boxes: int = 3
    score_thr: float = 0.3
    cam_layer: str | None = None
    sparsities: Sequence[float] = (0.25, 0.5, 0.75, 0.9)
    finetune_iters: int = 0
    symbolic: int = 0
    skip: Sequence[str] = ()


class Study:
    """One look into a model: its images are run once, and all that they show of KAN layers and blocks is kept.

    Args:
        subject: the model and what it is given.
        folder: for the page.
        options: what is looked at.
        say: is told what is under way.

    Raises:
        PreflightError: no KAN layer has run.
    """

    def __init__(self, subject: Subject, folder: str | Path, options: Options, say: Callable[[str], None]) -> None:
        self.subject, self.options, self.say = subject, options, say
        program = sys.argv[0] if not sys.argv[0].endswith('.py') else f'python {sys.argv[0]}'
        names = [subject.name(i) for i in range(len(subject.samples))]
        self.page = Page(folder, f'Inside {Path(subject.cfg.filename).stem}', {
            'config': subject.cfg.filename, 'checkpoint': subject.checkpoint,
            'images': f'{len(names)}: {", ".join(names[:6])}' + (', ...' if len(names) > 6 else ''),
            'command': f'{program} {shlex.join(sys.argv[1:])}', 'device': str(subject.device),
            'versions': f'rkan_mm {rkan_mm.__version__}, torch {torch.__version__}'})
        self.page.data.update(layers={}, functions={}, branches={})
        self.parts = parts(subject.model)
        say(f'Recording {len(subject.samples)} images')
        number = min(MOST_INPUTS, INPUTS // max(1, sum(map(few, kan_layers(subject.model).values()))))
        with Recorder(subject.model, num_samples=number) as recorder, BranchRecorder(subject.model) as branches:
            self.trained = []
            for result in subject.predict():
                self.trained.append(light(result))
                for branch in branches.branches.values():
                    branch.end_image()
        self.recorder, self.branches = recorder, branches.branches
        self.ran = {name: own for name, own in recorder.statistics.items() if own.calls}
        if not self.ran:
            raise PreflightError(f'None of the KAN layers ({", ".join(recorder.statistics)}) ran on these images; does '
                                 'the model leave them out when it predicts?')

    @cached_property
    def metric(self) -> Metric:
        return Metric(self.subject, self.options.eval_images)

    def wants(self, section: str) -> bool:
        return section not in self.options.skip

    def short(self, name: str) -> str:
        """A module's name without what all of them begin with."""
        for part in self.parts:
            if part.title != part.name and (name == part.name or name.startswith(f'{part.name}.')):
                return part.title + name[len(part.name):].replace('.block.', '.')
        return name

    def without_blocks(self) -> ExitStack:
        """A context in which every part is off."""
        stack = ExitStack()
        for part in self.parts:
            stack.enter_context(part.off())
        return stack

    def recorded(self, chosen: dict[str, list[Index]]) -> Recorder:
        """The images are run again for the inputs of chosen functions, by layer: fewer of each where they are many."""
        number = min(MOST_INPUTS, INPUTS // max(1, sum(map(len, chosen.values()))))
        with Recorder(self.subject.model, list(chosen), chosen, number) as recorder:
            for _ in self.subject.predict():
                pass
        return recorder

    def functions(self, section: Section, own: Statistics, name: str, caption: str, indices: list[Index] | None = None,
                  title: str | None = None, formulas: Mapping[Index, Callable] | None = None) -> None:
        """Figures of a layer's functions: one, or several where there are many of them."""
        parts: list = [indices[i:i + MOST_DRAWN] for i in range(0, len(indices), MOST_DRAWN)] if indices else [None]
        for some in parts:
            self.page.figure(section, draw_functions(own.functions.layer, own, some, title, formulas=formulas), name,
                             caption)

    def formulas(self, section: Section, own: Statistics, indices: list[Index] | None = None) -> dict[Index, str]:
        """Formulas of a layer's functions, where they are wanted and known; as text, by index."""
        if not self.wants('formulas'):
            return {}
        try:
            found = formula(own.functions.layer, indices, fold=not indices)  # of some, each has its own constant
        except ValueError as error:
            section.text(f'No formulas: {error}.')
            return {}
        notes = [] if indices else [f'constant = {found.constant:.6g}, of all functions and the bias together']
        notes += [] if found.argument is None else [f'u = {found.argument}']
        self.page.formulas(section, list(found.functions.values()), notes, f'{self.short(own.functions.name)}-formulas')
        return {index: one.text() for index, one in found}


def numbers(own: Statistics, indices: Sequence[Index] = (), formulas: Mapping[Index, str] | None = None) -> dict:
    """For the json: of a layer, and what the figures show of chosen functions."""
    found = dict(basis=type(own.functions.basis).__name__, functions=len(own.functions), inputs=own.count,
                 not_straight=own.total_nonlinear_share(), beyond=own.overflow, each={})
    if indices:
        share, rms, lines = own.nonlinear_share(), own.rms(), own.lines()
        found['each'] = {own.functions.label(index): dict(
            not_straight=share[index].item(), rms=rms[index].item(), slope=lines.slope[index].item(),
            slope_u=None if lines.slope_u is None else lines.slope_u[index].item(),
            intercept=lines.intercept[index].item(), range=own.range(index), formula=(formulas or {}).get(index),
            **_curve(own, index)) for index in indices}
    return found


def _curve(own: Statistics, index: Index) -> dict:
    """Points of a function over its inputs, and their histogram in as many parts; of u, with x at 0, where it has two
    arguments.
    """
    functions, ends = own.functions, own.range(index)
    x = torch.linspace(*ends, DATA_POINTS + 1, dtype=torch.float64)
    fixed = torch.zeros_like(x) if functions.two_arguments else x
    samples = own.samples(index)[1 if functions.two_arguments else 0]
    return dict(x=x, y=functions.curve(index, fixed, x),
                histogram=np.histogram(samples, DATA_POINTS, ends)[0] if ends[1] > ends[0] else None)


def percent(part: float) -> str:
    """A part of one, as per cent with two digits that count.

    Example:
        >>> percent(0.9996), percent(0.00123)
        ('99.96', '0.12')
    """
    value = 100 * part
    return f'{value:.3g}' if value < 99.5 else f'{value:.2f}'.rstrip('0').rstrip('.')
