"""What the sections of a page share: the model, what was recorded of it, and the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import rkan_mm
from rkan_mm.engine.run_error import PreflightError

from ..branch import BranchRecorder
from ..formulas import formula
from ..functions import Index
from ..metric import Metric
from ..statistics import Recorder, Statistics
from ..subject import Subject
from ..worth import parts
from .page import Page, Section

SECTIONS = ('formulas', 'metric', 'cam', 'field', 'pruning')
"""Parts of the page that can be left out."""


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
        names = [subject.name(i) for i in range(len(subject.images))]
        self.page = Page(folder, f'Inside {Path(subject.cfg.filename).stem}', {
            'config': subject.cfg.filename, 'checkpoint': subject.checkpoint,
            'images': f'{len(names)}: {", ".join(names[:6])}' + (', ...' if len(names) > 6 else ''),
            'command': f'{program} {shlex.join(sys.argv[1:])}', 'device': str(subject.device),
            'versions': f'rkan_mm {rkan_mm.__version__}, torch {torch.__version__}'})
        self.page.data.update(layers={}, functions={}, branches={})
        self.parts = parts(subject.model)
        say(f'Recording {len(subject.samples)} images')
        with Recorder(subject.model) as recorder, BranchRecorder(subject.model) as branches:
            self.trained = list(subject.predict())
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

    def formulas(self, section: Section, own: Statistics, indices: list[Index] | None = None) -> None:
        """Formulas of a layer's functions, where they are wanted and known."""
        if not self.wants('formulas'):
            return
        try:
            found = formula(own.functions.layer, indices)
        except ValueError as error:
            section.text(f'No formulas: {error}.')
            return
        section.formulas(list(found.functions.values()), None if indices else f'constant = {found.constant:.6g}',
                         found.argument)


def numbers(own: Statistics, indices: Sequence[Index] = ()) -> dict:
    """For the json: of a layer, and of chosen functions."""
    found = dict(basis=type(own.functions.basis).__name__, functions=len(own.functions), inputs=own.count,
                 not_straight=own.total_nonlinear_share(), beyond=own.overflow, each={})
    if indices:
        share, rms, lines = own.nonlinear_share(), own.rms(), own.lines()
        found['each'] = {own.functions.label(index): dict(
            not_straight=share[index].item(), rms=rms[index].item(), slope=lines.slope[index].item(),
            intercept=lines.intercept[index].item(), range=own.range(index)) for index in indices}
    return found


def percent(part: float) -> str:
    """A part of one, as per cent with two digits that count.

    Example:
        >>> percent(0.9996), percent(0.00123)
        ('99.96', '0.12')
    """
    value = 100 * part
    return f'{value:.3g}' if value < 99.5 else f'{value:.2f}'.rstrip('0').rstrip('.')
