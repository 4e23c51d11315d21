"""Conversion of checkpoints of the RKAN reference implementation (withray/residualKAN) to this package's layout."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from rkan_mm.models import RKANet

from .preflight import PreflightError, load_weights

# Names in the reference -> ours. {backbone}, {head} and {stage} are the modules' places in the model at hand; the
# reference numbers its stages from 0 and keeps each part of all blocks in a list.
RULES = tuple((re.compile(pattern), target) for pattern, target in (
    (r'resnet\.fc\.(?P<rest>.+)', '{head}fc.{rest}'),
    (r'resnet\.(?P<rest>.+)', '{backbone}{rest}'),
    (r'conv_reduce\.(?P<i>\d)\.(?P<rest>.+)', '{stage}block.reduce.{rest}'),
    (r'kan_conv(?P<n>[12])\.(?P<i>\d)\.convs\.0\.conv\.polynomial_weight', '{stage}block.kan{n}.weight'),
    (r'kan_conv(?P<n>[12])\.(?P<i>\d)\.convs\.0\.conv\.scaler', '{stage}block.kan{n}.scaler'),
    (r'kan_conv(?P<n>[12])\.(?P<i>\d)\.convs\.0\.conv\.base_linear\.weight', '{stage}block.kan{n}.base_weight'),
    (r'kan_bn\.(?P<i>\d)\.(?P<rest>.+)', '{stage}block.norm1.{rest}'),
    (r'conv_expand\.(?P<i>\d)\.(?P<rest>.+)', '{stage}block.expand.{rest}'),
    (r'kan_expand_bn\.(?P<i>\d)\.(?P<rest>.+)', '{stage}block.norm2.{rest}'),
    (r'conv_shortcut\.(?P<i>\d)\.(?P<rest>.+)', '{stage}block.shortcut.0.{rest}'),
    (r'shortcut_bn\.(?P<i>\d)\.(?P<rest>.+)', '{stage}block.shortcut.1.{rest}'),
    (r'gate_convs\.(?P<i>\d)\.(?P<rest>.+)', '{stage}fusion.gate.{rest}'),
    (r'se_blocks\.(?P<i>\d)\.1\.(?P<rest>.+)', '{stage}fusion.squeeze.{rest}'),
    (r'se_blocks\.(?P<i>\d)\.3\.(?P<rest>.+)', '{stage}fusion.excite.{rest}'),
))
STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


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
    """Rename and reshape a reference ``RKANet`` state_dict for ``model``.

    Args:
        source: state_dict of the reference model, of the ResNet family.
        model: a RKANet, or a classifier or detector around one, of the same architecture.

    Returns:
        state_dict of ``model`` (of what the source has) and the report on all keys.

    Raises:
        ValueError: the model has no RKANet, nothing fits, or a shape differs.
    """
    prefix = next((f'{name}.' if name else '' for name, module in model.named_modules() if isinstance(module, RKANet)),
                  None)
    if prefix is None:
        raise ValueError(f'convert_residualkan: {type(model).__name__} has no RKANet')
    target = model.state_dict()
    converted, report = {}, Report()
    for key, value in source.items():
        key = key.removeprefix('module.')
        name = _translate(key, prefix)
        if name not in target:
            report.unused.append(key)
            continue
        wanted = target[name].shape
        if '.convs.0.conv.' in key:
            value = value[0].movedim(0, -1)  # (1, taps, ...) -> (..., taps)
            side = math.isqrt(value.shape[-1])
            value = value.reshape(*value.shape[:-1], side, side)  # (..., taps) -> (..., kh, kw)
        if value.shape != wanted:
            raise ValueError(f'convert_residualkan: {key} {tuple(value.shape)} does not fit {name} {tuple(wanted)}; '
                             'is the config of the same depth, reduction, expansion, basis and number of classes?')
        converted[name], report.used[key] = value.clone(), name
    report.missing = [name for name in target if name not in converted]
    if not converted:
        raise ValueError('convert_residualkan: none of the source keys is one of a reference RKANet (resnet.*, '
                         f'kan_conv1.*, ...); it has {", ".join(list(source)[:5])}, ...')
    return converted, report


def _translate(key: str, prefix: str) -> str | None:
    for pattern, target in RULES:
        match = pattern.fullmatch(key)
        if match:
            parts = match.groupdict()
            stage = f'{prefix}bridges.{STAGES[int(parts["i"])]}.' if 'i' in parts else ''
            return target.format(backbone=f'{prefix}backbone.', head='head.', stage=stage, **parts)
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/convert_checkpoint.py."""
    parser = argparse.ArgumentParser(description='Convert a checkpoint to the layout of rkan_mm')
    parser.add_argument('layout', choices=['residualkan'], help='whose checkpoint it is')
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
        converted, report = convert_residualkan(source, MMENGINE_MODELS.build(cfg.model))
    except ValueError as error:
        raise PreflightError(str(error)) from error
    Path(args.dst).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=converted, meta=dict(source=Path(args.src).name, layout=args.layout)), args.dst)
    print(f'{report}\nwritten to {args.dst}')
