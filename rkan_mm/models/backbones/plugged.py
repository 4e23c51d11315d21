"""Plugin layers in the residual blocks of any ResNet-like backbone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_plugin_layer
from torch import Tensor, nn

from rkan_mm.models.layers.symbolic_trace import is_traced
from rkan_mm.registry import MODELS

from .bridged_stage import stage_input
from .place import Place, show_places


class Tap:
    """Sends what passes through a module of a block through the block's plugin layer.

    Both are looked up by name whenever the block runs: others may have taken their places.

    Args:
        block: holds both.
        layer: name of the layer.
        module: name of the module.
        after: whether the layer acts on the module's output, not on its input.
    """

    def __init__(self, block: nn.Module, layer: str, module: str, after: bool) -> None:
        self.block, self.layer = block, layer
        self.place = Place(module, self, before=not after, after=after)
        self.place.settle(block)
        self.handle = block.register_forward_pre_hook(self.settle)  # as in Place

    def settle(self, block: nn.Module, args: tuple) -> None:
        if getattr(block, '_is_replica', False):
            raise RuntimeError(f'PluggedBackbone: nn.DataParallel runs copies of {type(block).__name__} whose hooks '
                               f'call the {self.layer!r} of the original, on one device; use DistributedDataParallel, '
                               'as mm does')
        self.place.settle(self.block)
        if args and is_traced(args[0]):
            show_places(args[0].tracer)

    def before(self, name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        layer, x = self.block.get_submodule(self.layer), stage_input(args, kwargs)
        if isinstance(x, (list, tuple)):  # of the branches of a TridentNet
            return ([layer(branch) for branch in x],), {}
        return (layer(x),), {}

    def after(self, name: str, args: tuple, kwargs: dict, out: Tensor) -> Tensor:
        return self.block.get_submodule(self.layer)(out)


def plug(block: nn.Module, cfg: dict, position: str | None = None) -> None:
    """Build a plugin layer as a child of a residual block, and let it act at a position of the block.

    Args:
        block: it has ``conv1``, ``conv2``, ... and ``norm1``, ``norm2``, ... (or ``bn1``, ...); or ``conv_pw``,
            ``conv_dw``, ... and ``bn1``, ``bn2``, ..., as timm's blocks of EfficientNet and MobileNet.
        cfg: of the layer, and a ``postfix`` of its name.
        position: ``'after_conv{k}'``: behind the k-th convolution with its norm and, unless it is the last, activation.
            None is the last, before the residual is added.

    Raises:
        ValueError: no such convolutions or position, or the block has a child of that name.
    """
    names = [name for name, _ in block.named_children()]
    convs = {int(name[4:]): name for name in names if re.fullmatch(r'conv\d+', name)} or dict(
        enumerate((name for name in names if name in ('conv_pw', 'conv_dw', 'conv_pwl')), 1))
    if not convs:
        raise ValueError(f'{type(block).__name__} has no conv1, conv2, ...')
    following = {f'after_conv{number - 1}': getattr(block, name) for number, name in convs.items() if number > 1}
    number, last_conv = max(convs.items())
    last = f'after_conv{number}'
    position = position or last
    if position not in (*following, last):
        raise ValueError(f'no position {position!r} in {type(block).__name__}; there are '
                         + ', '.join([*following, last]))
    conv = following.get(position)
    channels = getattr(block, last_conv).out_channels if conv is None else next(
        part.in_channels for part in conv.modules() if hasattr(part, 'in_channels'))  # ResNeSt's has its conv within
    args = dict(cfg)
    name, layer = build_plugin_layer(args, args.pop('postfix', ''), in_channels=channels)
    if hasattr(block, name):
        raise ValueError(f'{type(block).__name__} has a {name!r} already; give the plugin a postfix')
    block.add_module(name, _like(layer, block))
    module = conv or getattr(block, f'norm{number}', None) or getattr(block, f'bn{number}')
    Tap(block, name, next(key for key, child in block.named_children() if child is module), after=conv is None)


def _like(layer: nn.Module, module: nn.Module) -> nn.Module:
    """A new layer on the device and in the dtype of a module's weights."""
    weight = next(module.parameters(), None)
    return layer if weight is None else layer.to(weight.device, weight.dtype)


def with_args(who: str, backbone: dict | nn.Module, **args: Any) -> dict | nn.Module:
    """A backbone's config with arguments that others write for any backbone; those that are None are left out.

    Raises:
        TypeError: there are some, and the backbone is built already.
    """
    args = {name: value for name, value in args.items() if value is not None}
    if not args:
        return backbone
    if isinstance(backbone, nn.Module):
        raise TypeError(f'{who}: {", ".join(f"{name}={value!r}" for name, value in args.items())} needs a config of a '
                        f'backbone, got a {type(backbone).__name__}, which is built already')
    if 'backbone' in backbone:  # a PluggedBackbone
        return {**backbone, 'backbone': with_args(who, backbone['backbone'], **args)}
    return {**backbone, **args}


@MODELS.register_module('PluggedBackbone')
def plugged_backbone(backbone: dict | nn.Module, plugins: Sequence[dict] = (),
                     replace: dict[str, dict] | None = None, pretrained: str | None = None,
                     out_indices: Sequence[int] | None = None) -> nn.Module:
    """Build a backbone and put plugin layers into its residual blocks, as ``plugins=`` of mmdet's ResNet does.

    The backbone comes back as itself: the names of its stages and the keys of its checkpoints stay, those of the
    plugins join them under mmdet's names (``layer1.0.eca.conv.weight``); ``frozen_stages``, ``norm_eval`` and
    ``init_cfg`` reach them.

    Args:
        backbone: config of a backbone whose stages ``layer1``, ``layer2``, ... are sequences of residual blocks, of
            mmdet or mmpretrain, BasicBlocks as well as Bottlenecks; or of a TIMMBackbone whose stages stand in
            ``blocks``, as EfficientNet's do.
        plugins: mmdet's own: dicts of ``cfg``, ``stages`` (a bool for each, all by default) and ``position``
            (``'after_conv1'``, ``'after_conv2'``, ``'after_conv3'``; by default the last: behind the block's last norm,
            before the residual is added).
        replace: names of modules to be replaced, and configs of what takes their place; for the variants of a backbone
            that its arguments do not offer.
        pretrained, out_indices: of the backbone, before those in its config, see `RKANet`.

    Raises:
        TypeError: ``pretrained`` or ``out_indices`` for a backbone that is built already.
        ValueError: no such stage, position or module.

    Example:
        >>> model = plugged_backbone(dict(type='mmpretrain.ResNet', depth=18), [dict(cfg=dict(type='rkan_mm.ECA'))])
        >>> model.layer4[1].eca
        ECA(
          (conv): Conv1d(1, 1, kernel_size=(5,), stride=(1,), padding=(2,), bias=False)
        )
    """
    backbone = with_args('PluggedBackbone', backbone, pretrained=pretrained, out_indices=out_indices)
    model = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
    who = f'PluggedBackbone: {type(model).__name__}'
    for name, cfg in (replace or {}).items():
        parent, _, child = name.rpartition('.')
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f'{who} has no module {name!r}: {error}') from error
        setattr(model.get_submodule(parent), child, _like(MODELS.build(cfg), model))
    for plugin in plugins:
        _plug_all(model, who, **plugin)
    model.train(model.training)  # what the backbone freezes takes in the new layers
    return model


def _plug_all(model: nn.Module, who: str, cfg: dict, stages: Sequence[bool] | None = None,
              position: str | None = None) -> None:
    names = _stages(model)
    if not names:
        raise ValueError(f'{who} has no stages layer1, layer2, ...; it has '
                         + ', '.join(name for name, _ in model.named_children()))
    if stages is not None and len(stages) != len(names):
        raise ValueError(f'{who} has {len(names)} stages, got stages={tuple(stages)} for {cfg}')
    for name, wanted in zip(names, stages or [True] * len(names), strict=True):
        for i, block in enumerate(model.get_submodule(name).children() if wanted else ()):
            try:
                plug(block, cfg, position)
            except ValueError as error:
                raise ValueError(f'{who}: {name}.{i}: {error}') from error


def _stages(model: nn.Module) -> list[str]:
    """Names of the sequences of residual blocks."""
    names = [name for name, _ in model.named_children() if re.fullmatch(r'layer\d+', name)]
    blocks = getattr(getattr(model, 'timm_model', None), 'blocks', None)
    if not names and isinstance(blocks, nn.Sequential):
        names = [f'timm_model.blocks.{name}' for name, stage in blocks.named_children()
                 if isinstance(stage, nn.Sequential)]
    return names
