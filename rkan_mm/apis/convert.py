"""Conversion of checkpoints to mm's layout: of the RKAN reference (withray/residualKAN), of torchvision and of timm."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from rkan_mm.models import RKANet

from .preflight import PreflightError, load_weights

Replacement = str | Callable[[re.Match], str]
Rules = tuple[tuple[str, Replacement | tuple[Replacement, ...]], ...]


def _less_one(template: str) -> Replacement:
    """Fill in the groups of a match, which count from 1, counted from 0."""
    return lambda match: template.format(*(int(group) - 1 for group in match.groups()))


def _third(template: str) -> Replacement:
    """Fill in the group of a match, which counts convolution, norm and activation one by one, counted by threes."""
    return lambda match: template.format(int(match[1]) // 3)


# torchvision's Faster and Mask R-CNN with FPN, of which the reference's detectors are made. Some zeros are new in
# version 0.13.
DETECTORS: Rules = (
    (r'^backbone\.body\.', ''),
    (r'^backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(?=weight|bias)', r'neck.lateral_convs.\1.conv.'),
    (r'^backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(?=weight|bias)', r'neck.fpn_convs.\1.conv.'),
    (r'^rpn\.head\.conv\.(?:0\.0\.)?(?=weight|bias)', 'rpn_head.rpn_conv.'),
    (r'^rpn\.head\.cls_logits\.', 'rpn_head.rpn_cls.'),
    (r'^rpn\.head\.bbox_pred\.', 'rpn_head.rpn_reg.'),
    (r'^roi_heads\.box_head\.fc([67])\.', lambda match: f'roi_head.bbox_head.shared_fcs.{int(match[1]) - 6}.'),
    (r'^roi_heads\.box_predictor\.cls_score\.', 'roi_head.bbox_head.fc_cls.'),
    (r'^roi_heads\.box_predictor\.bbox_pred\.', 'roi_head.bbox_head.fc_reg.'),
    (r'^roi_heads\.mask_head\.(\d)\.0\.', r'roi_head.mask_head.convs.\1.conv.'),
    (r'^roi_heads\.mask_head\.mask_fcn(\d)\.', _less_one('roi_head.mask_head.convs.{}.conv.')),
    (r'^roi_heads\.mask_predictor\.conv5_mask\.', 'roi_head.mask_head.upsample.'),
    (r'^roi_heads\.mask_predictor\.mask_fcn_logits\.', 'roi_head.mask_head.conv_logits.'),
)
# What torchvision's 91 classes of COCO have beside the 80 and the background.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# Names there -> in mm's backbones (and `fc` for the classifier), all rules in turn. Where a rule has several
# replacements, the one that the model at hand has is taken: mm's layouts differ as well.
TORCHVISION: Rules = (
    *DETECTORS,
    (r'^stem\.0\.', 'conv1.'),  # RegNet
    (r'^stem\.1\.', 'bn1.'),
    (r'^trunk_output\.block\d\.block(\d)-(\d+)\.', r'layer\1.\2.'),
    (r'\.proj\.', '.downsample.'),
    (r'\.f\.([abc])\.0\.', lambda match: f'.conv{"abc".index(match[1]) + 1}.'),
    (r'\.f\.([abc])\.1\.', lambda match: f'.bn{"abc".index(match[1]) + 1}.'),
    (r'\.f\.se\.', '.se.'),
    (r'\.se\.fc1\.', '.se.squeeze.'),
    (r'\.se\.fc2\.', '.se.excite.'),
    (r'^features\.conv0\.', 'stem.0.'),  # DenseNet
    (r'^features\.norm0\.', 'stem.1.'),
    (r'^features\.denseblock(\d)\.denselayer(\d+)\.', _less_one('stages.{}.block.{}.')),
    (r'(\.block\.\d+\.(?:norm|conv))\.(\d)\.', r'\1\2.'),  # in torchvision's files
    (r'^features\.transition(\d)\.', _less_one('transitions.{}.')),
    (r'^features\.norm5\.', 'transitions.3.0.'),
    (r'^classifier\.', 'fc.'),
)
TIMM: Rules = (
    *TORCHVISION,
    (r'^stem\.conv\.', 'conv1.'),  # RegNet
    (r'^stem\.bn\.', 'bn1.'),
    (r'^s(\d)\.b(\d+)\.', lambda match: f'layer{match[1]}.{int(match[2]) - 1}.'),
    (r'\.conv(\d)\.conv\.', (r'.conv\1.', r'.conv\1.conv.')),
    (r'\.conv(\d)\.bn\.', r'.bn\1.'),
    (r'\.downsample\.conv\.', '.downsample.0.'),
    (r'\.downsample\.bn\.', '.downsample.1.'),
    (r'^head\.fc\.', 'fc.'),
    (r'^conv1\.([036])\.', (_third('stem.{}.conv.'), r'stem.\1.')),  # ResNet-D, in mmpretrain and mmdet
    (r'^conv1\.([14])\.', (_third('stem.{}.bn.'), r'stem.\1.')),
    (r'^bn1\.', ('bn1.', 'stem.2.bn.', 'stem.7.')),
    (r'^(layer1\.0\.downsample)\.1\.', (r'\1.1.', r'\1.0.')),
    (r'^(layer1\.0\.downsample)\.2\.', (r'\1.2.', r'\1.1.')),
    (r'\.se\.conv\.', '.eca.conv.'),
)
# Stages are numbered from 0, and each part of all blocks is in a list.
RESIDUALKAN: Rules = (
    (r'^backbone\.body\.', ''),
    (r'^conv_reduce\.(\d)\.', r'bridges.\1.block.reduce.'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.polynomial_weight$', r'bridges.\2.block.kan\1.weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.scaler$', r'bridges.\2.block.kan\1.scaler'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.base_linear\.weight$', r'bridges.\2.block.kan\1.base_weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.base_linear\.bias$', r'bridges.\2.block.kan\1.bias'),  # RBFs
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.spline_linear\.weight$', r'bridges.\2.block.kan\1.weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.rbf\.(grid|inv_width)$', r'bridges.\2.block.kan\1.basis.\3'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.spline_weight$', r'bridges.\2.block.kan\1.weight'),  # B-splines
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.spline_scaler$', r'bridges.\2.block.kan\1.scaler'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.base_weight$', r'bridges.\2.block.kan\1.base_weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.grid$', r'bridges.\2.block.kan\1.basis.grid'),
    (r'^kan_bn\.(\d)\.', r'bridges.\1.block.norm1.'),
    (r'^conv_expand\.(\d)\.', r'bridges.\1.block.expand.'),
    (r'^kan_expand_bn\.(\d)\.', r'bridges.\1.block.norm2.'),
    (r'^conv_shortcut\.(\d)\.', r'bridges.\1.block.shortcut.0.'),
    (r'^shortcut_bn\.(\d)\.', r'bridges.\1.block.shortcut.1.'),
    (r'^gate_convs\.(\d)\.', r'bridges.\1.fusion.gate.'),
    (r'^se_blocks\.(\d)\.1\.', r'bridges.\1.fusion.squeeze.'),
    (r'^se_blocks\.(\d)\.3\.', r'bridges.\1.fusion.excite.'),
    (r'^stem\.([036])\.', (_third('deep_stem.{}.conv.'), r'deep_stem.\1.')),  # ResNet-D, in mmpretrain and mmdet
    (r'^stem\.([14])\.', (_third('deep_stem.{}.bn.'), r'deep_stem.\1.')),
    (r'^bn_final\.', 'norm2.'),
    (r'^(layer\d\.\d+)\.bn(\d)\.', (r'\1.bn\2.', r'\1.norm\2.')),
    (r'^(?:resnet|resnext|wideresnet|regnet|densenet)\.', ''),
    *TORCHVISION,
    (r'^conv1\.', ('conv1.', 'stem.conv.')),  # the second for ResNeSt
    (r'^bn1\.', ('bn1.', 'stem.bn.', 'stem.2.bn.', 'stem.7.', 'norm1.')),  # ResNeSt, ResNet-D in both mm, PyramidNet
    (r'^(layer\d\.0\.downsample)\.0\.', (r'\1.0.', r'\1.1.')),  # ResNeSt
    (r'^(layer\d\.0\.downsample)\.1\.', (r'\1.1.', r'\1.2.')),
    (r'^deep_stem\.', 'stem.'),
    (r'\.cbam\.channel_attention\.fc\.', '.cbam.mlp.'),
    (r'\.cbam\.spatial_attention\.conv\.', '.cbam.spatial.'),
    (r'\.gc_block\.context_modeling\.', '.context_block.conv_mask.'),
    (r'\.gc_block\.transform\.', '.context_block.channel_add_conv.'),
    (r'\.sa\.c(weight|bias)$', r'.shuffle_attention.channel_\1'),
    (r'\.sa\.s(weight|bias)$', r'.shuffle_attention.spatial_\1'),
    (r'\.sa\.gn\.', '.shuffle_attention.spatial_norm.'),
    (r'\.ela\.gn\.', '.ela.norm.'),
)
PLAIN = dict(torchvision=TORCHVISION, timm=TIMM)


@dataclass
class Report:
    """What became of every key: ``used`` maps source to target; ``unused`` (source) and ``missing`` (target) remain."""

    used: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

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
    if not converted:
        raise ValueError(f'{caller}: none of the source keys is one of {wanted}; '
                         f'it has {", ".join(list(source)[:5])}, ...')
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
                number = int(re.search(r'\d', bridge.name)[0]) - bridge.name.startswith('layer')  # from 0
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
    parser = argparse.ArgumentParser(description='Convert a checkpoint to the layout of rkan_mm')
    parser.add_argument('layout', choices=['residualkan', *PLAIN], help='whose checkpoint it is')
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument('dst', help='checkpoint to write')
    parser.add_argument('--config', required=True, help='config of the model that will load it')
    args = parser.parse_args(argv)
    if not Path(args.config).is_file():
        raise PreflightError(f'Config {args.config!r} does not exist.')
    source = load_weights(args.src)
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    try:
        model = MMENGINE_MODELS.build(cfg.model)
        converted, report = convert_plain(source, model, args.layout) if args.layout in PLAIN else \
            convert_residualkan(source, model)
    except ValueError as error:
        raise PreflightError(str(error)) from error
    Path(args.dst).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=converted, meta=dict(source=Path(args.src).name, layout=args.layout)), args.dst)
    print(f'{report}\nwritten to {args.dst}')
