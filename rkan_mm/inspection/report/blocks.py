"""Section of a RKAN block: its functions, its branch beside the stage, and what changes without it."""

from __future__ import annotations

from pathlib import Path

from rkan_mm.visualization import draw_branch, draw_changes

from ..comparison import changes
from ..worth import Part, Variant
from .study import Study, numbers, percent

PICTURES = 3
KERNELS = 12
"""Of a block, that are drawn."""


def show_block(study: Study, part: Part, runs: list[Variant]) -> None:
    """All that is said of a block; ``runs`` are as trained, straight and off, where there is a metric."""
    section = study.page.section(f'Block {part.title}')
    drawn = _largest(study, [*part.layers])
    if len(drawn) < len(part.layers):
        section.text(f'Of its {len(part.layers)} kernels, each of a group of channels, the {len(drawn)} with the '
                     'largest functions are shown; data.json has the numbers of all.')
    for name in part.layers:
        if name in drawn:
            _kernel(study, name)
        elif study.recorder[name].calls:
            study.page.data['layers'][name] = numbers(study.recorder[name])
    if part.name in study.branches:
        _branch(study, part)
    if len(runs) > 1:
        _changes(study, part, runs)


def _largest(study: Study, names: list[str]) -> list[str]:
    """Kernels that are shown: all, or of many those with the largest functions, by their root mean square."""
    if len(names) <= KERNELS:
        return names
    size = {name: own.rms().square().mean().item() for name in names if (own := study.recorder[name]).calls}
    return sorted(size, key=size.__getitem__, reverse=True)[:KERNELS] or names[:1]


def _kernel(study: Study, name: str) -> None:
    own, title = study.recorder[name], study.short(name)
    section = study.page.section(f'{title}: its functions', 3)
    if not own.calls:
        section.text('This layer did not run on these images.')
        return
    study.say(f'Functions of {title}')
    share = own.nonlinear_share()
    kept = share[~share.isnan()]
    text = f'Straight lines leave {percent(own.total_nonlinear_share())} % of the variance of all functions together'
    if len(kept):
        text += f', {percent(kept.min().item())} to {percent(kept.max().item())} % of that of each'
    if own.overflow is not None:
        where = 'where |tanh| is above 0.99' if own.functions.normalization == 'tanh' else 'beyond the grid'
        text += f'; {percent(own.overflow)} % of its inputs lie {where}'
    section.text(f'{text}.', strong=True)
    study.page.short.append(f'{title}: {text[0].lower()}{text[1:]}.')
    study.functions(section, own, f'{title}-functions',
                    f'Functions of {title} over the {own.count:,} inputs that each has (histograms of roots of '
                    'counts); grey is where there are none.')
    found = study.formulas(section, own)
    study.page.data['layers'][name] = numbers(own, own.functions.indices(), found)


def _branch(study: Study, part: Part) -> None:
    branch = study.branches[part.name]
    section = study.page.section(f'{part.title}: the branch beside its stage', 3)
    if not branch.calls:
        section.text('The stage did not run on these images.')
        return
    study.say(f'Branch of {part.title}')
    section.text(f'What the block adds is {branch.size:.3g} times the output of the stage (root mean squares). Outputs '
                 f'with and without it have a mean cosine of {branch.cosine:.3f} at a place, and a linear CKA of '
                 f'{branch.cka:.3f}.', strong=True)
    images = [study.subject.as_seen(i) for i in range(min(4, len(study.subject.samples)))]
    study.page.figure(section, draw_branch(branch, images), f'{part.title}-branch',
                      'Size of the branch by channel; mean over channels of the stage without and with the block, on '
                      'one scale; part of the features that the block gives.')
    study.page.short.insert(0, f'{part.title}: the branch is {branch.size:.3g} times the output of its stage.')
    study.page.data['branches'][part.name] = dict(size=branch.size, cosine=branch.cosine, cka=branch.cka,
                                                  size_by_channel=branch.size_by_channel)


def _changes(study: Study, part: Part, runs: list[Variant]) -> None:
    """Pictures on which the runs differ most."""
    section, threshold = study.page.section(f'{part.title}: what changes', 3), study.options.score_thr
    differing = sorted(((sum(len(changes(before, other, threshold)) for other in others), -i)
                        for i, (before, *others) in enumerate(zip(*(run.predictions for run in runs), strict=True))),
                       reverse=True)
    section.text(f'Predictions differ on {sum(count > 0 for count, _ in differing)} of {len(differing)} images'
                 + (f' (boxes with a score of at least {threshold}).' if study.subject.is_detector else '.'))
    for _, i in [pair for pair in differing if pair[0]][:PICTURES]:
        place = study.metric.chosen[-i]
        name = study.subject.name_of(place)
        drawn = draw_changes(study.subject.picture_of(place), {run.name: run.predictions[-i] for run in runs},
                             study.subject.classes, threshold)
        study.page.figure(section, drawn, f'{part.title}-changes-{Path(name).stem}',
                          f'{name}: green is as in the trained model, orange new, dashed lost.' if
                          study.subject.is_detector else name)
