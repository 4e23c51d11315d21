"""Section: simple formulas in the place of the most important functions, and what that costs in the metric."""

from __future__ import annotations

import math
from typing import Any

from ..symbolic import best, fit_layer, substituted
from ..worth import Variant
from .layers import most_important
from .study import Study


def show_symbolic(study: Study, runs: list[Variant]) -> None:
    """Fit forms to as many functions as the options say, over all layers, and evaluate the model with them.

    Args:
        study: what is looked at.
        runs: of the metric, the trained model's first; none where there is no metric.
    """
    section, number = study.page.section('Symbolic fit'), study.options.symbolic
    rms = {name: own.rms() for name, own in study.ran.items() if not own.functions.two_arguments}
    if not rms:
        section.text('The functions of all layers take what a normalisation makes of several inputs; no formula of x '
                     'can stand for them.')
        return
    chosen = most_important(rms, number)
    study.say(f'Symbolic fit of {sum(map(len, chosen.values()))} functions')
    recorder = study.recorded(chosen)
    rows: list[list[Any]] = []
    formulas, data = {}, {}
    for name, indices in chosen.items():
        functions = recorder[name].functions
        try:
            fits = fit_layer(recorder[name], indices)
        except ValueError as error:
            section.text(f'{study.short(name)}: no formulas are fitted ({error}).')
            continue
        own = {index: best(fits[index]) for index in indices}
        formulas[functions.layer] = own
        for index, fit in own.items():
            label = f'{study.short(name)}, {functions.label(index)}'
            inputs = len(recorder[name].samples(index)[0])
            rows.append([label, fit.form, fit.complexity, fit.r2, inputs, fit.text()])
            every = {other.form: dict(complexity=other.complexity, r2=other.r2) for other in fits[index]}
            data[label] = dict(chosen=fit.text(), form=fit.form, constants=fit.constants, r2=fit.r2, inputs=inputs,
                               all=every)
        study.functions(section, recorder[name], f'{study.short(name)}-symbolic',
                        f'Functions of {study.short(name)} and the formulas that were chosen for them.', indices,
                        study.short(name), own)
    if not rows:
        return
    section.text('For each function the simplest form whose r2 is within 0.001 of the best form\'s, over the inputs '
                 'that it really has; all forms with their complexity and r2 are in data.json.')
    section.table(['function', 'form', 'complexity', 'r2', 'inputs', 'formula'], rows)
    study.page.data['symbolic'] = dict(functions=data)
    if not runs:
        section.text('There is no metric to tell what the formulas cost.')
        return
    with substituted(formulas):
        metrics, predictions = study.metric()
    first = next(iter(runs[0].metrics), None)
    if first is None:
        return
    before, after = runs[0].metrics[first], metrics.get(first, 0.0)
    interval = study.metric.intervals([runs[0].predictions, predictions], first)[1]
    text = (f'With these {len(rows)} formulas in the place of the functions, {first} goes from {before:.4g} to '
            f'{after:.4g} on {study.metric.num_images} images')
    if before:
        text += f' ({100 * (after - before) / before:+.2g} %)'
    if interval is not None:
        text += f'; the change has a 95 % interval of {interval[0]:+.3g} to {interval[1]:+.3g}'
    least = min((row[3] for row in rows if not math.isnan(row[3])), default=math.nan)
    section.text(f'{text}. The least r2 is {least:.4f}.', strong=True)
    study.page.short.append(f'Symbolic fit: {text[0].lower()}{text[1:]}.')
    study.page.data['symbolic'] |= dict(metrics=metrics, interval=interval)
