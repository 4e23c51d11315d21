"""RKANet: RKAN blocks on the stages of any backbone, attached by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from rkan_mm.models.layers.fusion import Addition, SEFusion
from rkan_mm.models.ops import static_shape
from rkan_mm.registry import FUSIONS, MODELS, build


def feature_map(x: Any, args: tuple) -> Any:
    """What a stage takes or gives as (B, C, H, W): tokens (B, H W, C) too, if (H, W) is the stage's second argument."""
    if isinstance(x, Tensor) and x.dim() == 3 and len(args) > 1 and isinstance(args[1], tuple) and len(args[1]) == 2:
        return x.reshape(x.shape[0], *args[1], static_shape(x)[2]).permute(0, 3, 1, 2)  # (B, H W, C) -> (B, C, H, W)
    return x


class BridgedStage(BaseModule):
    """The RKAN block and fusion of one stage, and the hooks that put them there.

    The hooks are bound methods: a copy of the model then calls the copy's block.
    """

    def __init__(self, name: str, block: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.block = block
        self.fusion = fusion
        self._input = None

    @property
    def starts_at_zero(self) -> bool:
        """Whether a new block leaves the output of its stage as it is."""
        return getattr(self.block, 'residual_init', None) == 0 and isinstance(self.fusion, (Addition, SEFusion))

    def enter(self, module: nn.Module, args: tuple) -> None:
        self._input = feature_map(args[0], args)

    def leave(self, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x, self._input = self._input, None
        return self.join(x, args, out)

    def bridge(self, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return self.join(feature_map(args[0], args), args, out)

    def join(self, x: Tensor, args: tuple, out: Tensor) -> Tensor:
        """The fused output in the form that the stage has given: a map, or tokens."""
        fused = self(x, feature_map(out, args))
        return fused.permute(0, 2, 3, 1).flatten(1, 2) if out.dim() == 3 else fused

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Input and output of the stage -> the fused output; called as a module, so that hooks on it see each."""
        return self.fuse(x, out)

    def fuse(self, x: Tensor, out: Tensor) -> Tensor:
        residual = self.block(x)
        ours, theirs = static_shape(residual), static_shape(out)
        if ours[:2] != theirs[:2] or not all(0 <= n - m <= 1 for n, m in zip(ours[2:], theirs[2:], strict=True)):
            raise ValueError(
                f'RKANet: stage {self.name!r} maps {tuple(x.shape)} to {tuple(out.shape)}, but its RKAN block to '
                f'{tuple(residual.shape)}; pad the images so that every stage sees even sizes, '
                'e.g. pad_size_divisor=32 in the data preprocessor')
        height, width = out.shape[2:]  # a stage that pools odd maps rounds their size down, not up
        return self.fusion(out, residual[..., :height, :width])

    def attach(self, first: nn.Module, last: nn.Module) -> None:
        if first is last:
            last.register_forward_hook(self.bridge)
        else:
            first.register_forward_pre_hook(self.enter)
            last.register_forward_hook(self.leave)


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class RKANet(BaseModule):
    """A backbone whose stages carry RKAN blocks (Residual Kolmogorov-Arnold Network, arXiv 2410.05500).

    The inner backbone is built from its own config and stays as it is; hooks fuse the residual of a block into the
    output of its stage, which then feeds the next stage and the outputs. Blocks are siblings of the backbone, out of
    reach of its ``frozen_stages``, ``norm_eval`` and ``init_cfg``.

    Args:
        backbone: config of any mmdet, mmpretrain or TIMM backbone (or a module). A ``type`` without a scope is looked
            up in the default scope.
        stages: names of modules in the backbone, e.g. ``('layer4',)``; ``'first:last'`` spans two. Maps pass them, or
            tokens with their height and width, as in the blocks of mm's Swin. As a dict it gives each stage what
            differs from ``block`` and ``fusion``: ``dict(layer3=dict(reduction=4), layer4=dict())``; None switches an
            inherited stage off.
        block: config of the blocks; in/out channels and stride are measured, ``last`` is true for the stage behind
            which the backbone has no further convolution.
        fusion: config of the fusion, ``'Addition'``, ``'Gating'`` or ``'SE'``.
        input_size: height and width of the image with which the stages are measured once.
        with_cp: ``with_cp`` of the blocks; that of the inner backbone stands in its own config.
        pretrained: weights of the inner backbone, which the models of mmsegmentation hand to their backbone.
        init_cfg: see mmengine. Checkpoints of the plain backbone load as well as its own.

    Raises:
        ValueError: no such stage, or one that is not a feature map (B, C, H, W); in forward: a stage whose output
            size differs from its block's by more than the rounding of odd sizes.

    Example:
        >>> model = RKANet(backbone=dict(type='mmdet.ResNet', depth=18), stages=('layer3', 'layer4'))
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]
    """

    def __init__(self,
                 backbone: dict | nn.Module,
                 stages: Sequence[str] | dict[str, dict | None] = ('layer4',),
                 block: dict = dict(type='RKANBlock'),  # noqa: B006
                 fusion: dict = dict(type='Addition'),  # noqa: B006
                 input_size: tuple[int, int] = (64, 64),
                 with_cp: bool = False,
                 pretrained: str | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        if pretrained is not None:
            backbone = self._with_pretrained(backbone, pretrained)
        self.backbone = backbone if isinstance(backbone, nn.Module) else self._build_backbone(backbone)
        if isinstance(stages, str):
            stages = (stages,)
        if not isinstance(stages, dict):
            stages = {name: {} for name in stages}
        overrides = {name: dict(override) for name, override in stages.items() if override is not None}
        spans = {name: self._find(name) for name in overrides}
        while isinstance(backbone, dict) and 'in_channels' not in backbone and 'backbone' in backbone:
            backbone = backbone['backbone']  # of a PluggedBackbone
        in_channels = backbone.get('in_channels', 3) if isinstance(backbone, dict) else 3
        measured = self._measure(spans, torch.zeros(1, in_channels, *input_size))

        self.bridges = ModuleDict()
        for name, override in overrides.items():
            caller = f'RKANet: stage {name!r}'
            stage_fusion = build(FUSIONS, override.pop('fusion', fusion), caller,
                                 channels=measured[name]['out_channels'])
            stage_block = build(MODELS, {'type': 'RKANBlock', **block, **override}, caller, **measured[name],
                                **(dict(with_cp=True) if with_cp else {}))
            bridge = BridgedStage(name, stage_block, stage_fusion)
            bridge.attach(*spans[name])
            self.bridges[name.replace('.', '_').replace(':', '-')] = bridge

    @staticmethod
    def _with_pretrained(backbone: dict, pretrained: str) -> dict:
        if not isinstance(backbone, dict):
            raise TypeError(f'RKANet: pretrained={pretrained!r} needs a config of a backbone, got a '
                            f'{type(backbone).__name__}; load the weights into it before')
        if 'backbone' in backbone:  # a PluggedBackbone
            return {**backbone, 'backbone': RKANet._with_pretrained(backbone['backbone'], pretrained)}
        return {**backbone, 'pretrained': pretrained}

    @staticmethod
    def _build_backbone(cfg: dict) -> nn.Module:
        try:
            return MODELS.build(cfg)
        except KeyError as error:
            raise ValueError(f"RKANet: cannot build backbone {cfg.get('type')!r}: {error.args[0]}. Outside a config "
                             "with a default_scope its type needs one, e.g. 'mmdet.ResNet'") from error

    def _find(self, name: str) -> tuple[nn.Module, nn.Module]:
        """First and last module of a stage."""
        modules = dict(self.backbone.named_modules(remove_duplicate=False))
        first, _, last = name.partition(':')
        for part in (first, last or first):
            if part in modules and part:
                continue
            parent = part.rpartition('.')[0]
            parent = parent if parent in modules else ''
            there = ', '.join(f'{parent}.{child}'.lstrip('.') for child, _ in modules[parent].named_children())
            raise ValueError(f'RKANet: no stage {part!r} in {type(self.backbone).__name__}; it has {there}')
        return modules[first], modules[last or first]

    @torch.no_grad()
    def _measure(self, spans: dict[str, tuple[nn.Module, nn.Module]], image: Tensor) -> dict[str, dict[str, Any]]:
        """Channels, stride and position of each stage, from one forward pass in eval mode."""
        inputs, outputs, weighted = {}, {}, []
        last_seen = {}

        def record(name):
            def enter(module, args):
                inputs[name] = feature_map(args[0], args) if args else None

            def leave(module, args, out):
                outputs[name], last_seen[name] = feature_map(out, args), len(weighted)

            return enter, leave

        def count(module, args, out):
            if isinstance(out, Tensor) and out.dim() > 2:  # not the classifier of a whole network
                weighted.append(module)

        handles = []
        for module in self.backbone.modules():
            if getattr(module, 'weight', None) is not None and module.weight.dim() > 1:
                handles.append(module.register_forward_hook(count))
        for name, (first, last) in spans.items():
            enter, leave = record(name)
            handles += [first.register_forward_pre_hook(enter), last.register_forward_hook(leave)]
        training = {module: module.training for module in self.backbone.modules()}
        try:
            for module in training:
                module.training = False
            self.backbone(image)
        finally:
            for module, mode in training.items():
                module.training = mode
            for handle in handles:
                handle.remove()

        measured = {}
        who = type(self.backbone).__name__
        for name in spans:
            if name not in inputs or name not in outputs:
                raise ValueError(f'RKANet: stage {name!r} of {who} does not run in its forward pass')
            x, out = inputs[name], outputs[name]
            for side, value in (('input', x), ('output', out)):
                if not isinstance(value, Tensor) or value.dim() != 4:
                    what = f'of shape {tuple(value.shape)}' if isinstance(value, Tensor) else type(value).__name__
                    raise ValueError(f'RKANet: the {side} of stage {name!r} of {who} is {what}; an RKAN block needs '
                                     'feature maps (B, C, H, W)')
            stride = tuple(round(i / o) for i, o in zip(x.shape[2:], out.shape[2:], strict=True))
            measured[name] = dict(in_channels=x.shape[1], out_channels=out.shape[1], stride=stride,
                                  last=last_seen[name] == len(weighted))
        return measured

    def take_plain(self, state_dict: dict, prefix: str = '') -> None:
        """Rename, in place, the keys of a plain backbone's checkpoint for those of the inner backbone."""
        own, inner = self.state_dict(), self.backbone.state_dict()
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix):]
            target = f'{prefix}backbone.{name}'
            if name in inner and name not in own and target not in state_dict:
                state_dict[target] = state_dict.pop(key)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        self.take_plain(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        return self.backbone(x)
