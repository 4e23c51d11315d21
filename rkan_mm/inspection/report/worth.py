"""Section: what blocks and layers are worth."""

from __future__ import annotations

from rkan_mm.engine.run_error import PreflightError

from ..metric import RESAMPLES
from ..worth import Variant, variants
from .study import Study

MINOR = ('75', 's', 'm', 'l')
"""Endings of COCO's figures that the page leaves to its data."""


def show_worth(study: Study) -> list[Variant]:
    """The metric of the model as trained, and of its parts straight and off.

    Returns:
        The runs with their predictions; none where the validation set is not there.
    """
    section = study.page.section('Does it matter?')
    try:
        metric = study.metric
    except (OSError, PreflightError) as error:
        section.text(f'No metric on the validation set of the config: {str(error).rstrip(".")}.')
        return []
    runs = []
    for run, context in variants(study.subject.model, study.recorder):
        study.say(f'Metric on {metric.num_images} images: {run.name} {study.short(run.part)}')
        with context:
            run.metrics, run.predictions = metric()
        runs.append(run)
    names = [name for name in runs[0].metrics if any(run.metrics.get(name, -1) >= 0 for run in runs)]
    shown = [name for name in names if name.rpartition('_')[2] not in MINOR][:4]
    if not shown:
        section.text('The model predicts nothing on these images, so there is no metric.')
        return runs
    first, rows = shown[0], []
    for run, interval in zip(runs, metric.intervals([run.predictions for run in runs], first), strict=True):
        run.interval = interval
        change = None if run.name == 'as trained' else run.metrics.get(first, 0.0) - runs[0].metrics[first]
        rows.append([study.short(run.part) or 'whole model', run.name, *(run.metrics.get(name) for name in shown),
                     '' if change is None else f'{change:+.3g}',
                     '' if run.interval is None else f'{run.interval[0]:+.3g} to {run.interval[1]:+.3g}'])
        if change is not None:
            study.page.short.append(_verdict(study, run, first, runs[0].metrics[first], change, metric.num_images))
    section.text(f'On {metric.num_images} of {metric.total} images of the validation set, evenly spread. "Straight" '
                 'puts in the place of each function its best straight line over the inputs that it has; "off" leaves '
                 'a block out, of KAN layers all but their base branch. Nothing is trained again.')
    section.table(['part', 'run', *shown, f'change of {first}', '95 % interval'], rows)
    if any(run.interval is not None for run in runs):
        section.text(f'The interval is of the change, from {RESAMPLES} resamplings of the images, in pairs (box AP '
                     'over all areas, or top-1). It says what other images would have given, not what another training '
                     'would.')
    study.page.data['metric'] = dict(images=metric.num_images, of=metric.total, runs=[
        dict(part=run.part, run=run.name, metrics=run.metrics, interval=run.interval) for run in runs])
    return runs


def _verdict(study: Study, run: Variant, metric: str, before: float, change: float, images: int) -> str:
    what = {'straight': 'with straight lines in the place of the functions', 'off': 'turned off'}[run.name]
    text = f'{study.short(run.part)} {what}: {metric} from {before:.4g} to {before + change:.4g} on {images} images'
    if run.interval is None:
        return f'{text}.'
    low, high = run.interval
    told = 'not told apart from no change' if low <= 0 <= high else 'other images would show a change, too'
    return f'{text}; the change, {change:+.3g}, has a 95 % interval of {low:+.3g} to {high:+.3g}: {told}.'
