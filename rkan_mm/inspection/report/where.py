"""Sections: where a model looks, and its effective receptive field."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from mmengine.structures import BaseDataElement
from torch import nn

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.visualization import draw_activation_maps, draw_receptive_fields
from rkan_mm.visualization.overlay import class_name

from ..cam import BoxTarget, ClassTarget, activation_map, cam_layer
from ..fields import receptive_field, square_with
from .study import Study

IMAGES = 64
"""Most that a receptive field is the mean of."""


def looked_at(study: Study) -> tuple[str, nn.Module] | None:
    """Name and layer whose features are looked at; None where the model has no maps of features.

    Raises:
        PreflightError: the options name a module that is not there.
    """
    subject = study.subject
    data = subject.batch(subject.samples[0])
    try:
        return cam_layer(subject.model, lambda: subject.model(data['inputs'], data['data_samples'], mode='tensor'),
                         study.options.cam_layer)
    except ValueError as error:
        if study.options.cam_layer:
            raise PreflightError(str(error)) from error
        return None


def show_where(study: Study, name: str, layer: nn.Module) -> None:
    """Grad-CAM of the best box or the class of a few images, and Eigen-CAM, with the blocks and without."""
    section, subject = study.page.section('Where it looks'), study.subject
    section.text(f'Maps of the features of {name}: Grad-CAM (what raises the score of this box or class) and '
                 'Eigen-CAM (the first principal component, whatever is predicted), for the whole model and with all '
                 'of its blocks off.')
    drawn = 0
    for i, (sample, result) in enumerate(zip(subject.samples, study.trained, strict=True)):
        if drawn >= study.options.boxes:
            return
        box, target, title = _target(study, result)
        if target is None:
            continue
        study.say(f'Where it looks: {title} in {subject.name(i)}')
        data = subject.batch(sample)
        maps = {}
        for kind, of in (('Grad-CAM', target), ('Eigen-CAM', None)):
            for state in ('', ', blocks off'):
                with study.without_blocks() if state else contextlib.nullcontext():
                    maps[f'{kind}{state}'] = activation_map(subject.model, layer, data['inputs'], data['data_samples'],
                                                            of)
        if box is not None:
            scale = data['data_samples'][0].get('scale_factor', (1, 1))[:2]
            box = [side * factor for side, factor in zip(box, (*scale, *scale), strict=True)]
        stem = Path(subject.name(i)).stem
        study.page.figure(section, draw_activation_maps(subject.as_seen(i), maps, box=box), f'cam-{stem}',
                          f'{title} in {subject.name(i)}.')
        drawn += 1
    if not drawn:
        section.text(f'No box or class has a score of at least {study.options.score_thr} on these images.')


def _target(study: Study, result: BaseDataElement) -> tuple[list[float] | None, BoxTarget | ClassTarget | None, str]:
    """Of one image: the best box, what is asked of it, and its name."""
    classes = study.subject.classes

    def named(label: int, score: float) -> str:
        return f'{class_name(classes, label)} ({score:.2f})'

    if 'pred_instances' not in result and 'pred_label' not in result:
        return None, None, ''
    if 'pred_instances' not in result:
        label = int(result.pred_score.argmax())  # of several labels the surest
        return None, ClassTarget(label), named(label, float(result.pred_score[label]))
    found = result.pred_instances
    if not len(found) or found.scores.max() < study.options.score_thr:
        return None, None, ''
    i = int(found.scores.argmax())
    box, label = found.bboxes[i], int(found.labels[i])
    return box.tolist(), BoxTarget(box, label), named(label, float(found.scores[i]))


def show_field(study: Study, name: str, layer: nn.Module) -> None:
    """The effective receptive field of the last stage with a block, with the blocks and without."""
    section, model = study.page.section('Effective receptive field'), study.subject.model
    study.say(f'Receptive field of {name}')
    images = [study.subject.batch(sample)['inputs'] for sample in study.subject.samples[:IMAGES]]
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        run = partial(model, mode='tensor')
    else:  # a layer of the neck is reached by extract_feat, which not all models have
        run = backbone if layer in backbone.modules() else getattr(model, 'extract_feat', backbone)
    try:
        fields = {'with its blocks': receptive_field(model, layer, images, run)}
    except (ValueError, NotImplementedError) as error:  # --cam-layer may name anything
        section.text(f'Not looked at: {str(error).rstrip(".") or "the model has no extract_feat"}.')
        return
    with study.without_blocks():
        fields['blocks off'] = receptive_field(model, layer, images, run)
    study.page.figure(section, draw_receptive_fields(fields), 'receptive-field',
                      f'Gradient of the middle of the output of {name} by the pixels, mean over {len(images)} images.')
    study.page.data['receptive_field'] = {key: {str(part): square_with(field, part) for part in (0.5, 0.9)}
                                          for key, field in fields.items()}
