"""RKANet: RKAN blocks on the stages of any backbone, attached by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from mmengine.model import ModuleDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from rkan_mm.models.layers.symbolic_trace import is_traced
from rkan_mm.registry import FUSIONS, MODELS, build

from .attributes import OWN, BackboneAttributes, teach_lora
from .bridged_stage import BridgedStage
from .layer_decay import teach_mmdet
from .measure import measure
from .place import places_of, show_places
from .plugged import with_args


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class RKANet(BackboneAttributes):
    """A backbone whose stages carry RKAN blocks (Residual Kolmogorov-Arnold Network, arXiv 2410.05500).

    The inner backbone is built from its own config and stays as it is; hooks fuse the residual of a block into the
    output of its stage, which then feeds the next stage and the outputs. Blocks are siblings of the backbone, out of
    reach of its ``frozen_stages``, ``norm_eval`` and ``init_cfg``. Attributes that a RKANet does not have are those of
    the inner backbone, to read, to write and to delete.

    Args:
        backbone: config of any mmdet, mmpretrain or TIMM backbone, or of a neck or a list of them (or a module). A
            ``type`` without a scope is looked up in the default scope.
        stages: names of modules in the backbone, e.g. ``('layer4',)``; ``'first:last'`` spans two. Maps pass them, or
            tokens with their height and width, as in the blocks of mm's Swin. As a dict it gives each stage what
            differs from ``block`` and ``fusion``: ``dict(layer3=dict(reduction=4), layer4=dict())``; None switches an
            inherited stage off.
        block: config of the blocks; in/out channels and stride are measured, ``last`` is true for the stage behind
            which the backbone has no further convolution.
        fusion: config of the fusion, ``'Addition'``, ``'Gating'`` or ``'SE'``.
        input_size: height and width of the image with which the stages are measured once, or one number for both; None
            takes 64 x 64, or the first of 224, 256 and 384 that the backbone takes and in which no stage has a single
            pixel.
        with_cp, norm_eval: of the blocks; those of the inner backbone stand in its own config.
        frozen_stages: names of the stages whose blocks and fusions are frozen: no gradients, norms in eval mode.
        pretrained, out_indices: of the inner backbone, before those in its config, where others write them for any
            backbone: the models of mmsegmentation, and mmpretrain's ``get_model(..., backbone=dict(out_indices=...))``.
        init_cfg: see mmengine. Checkpoints of the plain backbone load as well as its own.

    Raises:
        ValueError: no such stage, one that is not a feature map (B, C, H, W), or one that no output depends on; a
            backbone that is another RKANet's; in forward: a stage whose output size differs from its block's by more
            than the rounding of odd sizes.
        RuntimeError: under ``nn.DataParallel``.

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
                 input_size: tuple[int, int] | int | None = None,
                 with_cp: bool = False,
                 norm_eval: bool = False,
                 frozen_stages: Sequence[str] = (),
                 pretrained: str | None = None,
                 out_indices: Sequence[int] | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        backbone = with_args('RKANet', backbone, pretrained=pretrained, out_indices=out_indices)
        self.backbone = backbone if isinstance(backbone, nn.Module) else self._build_backbone(backbone)
        self._check_unbridged()
        if isinstance(stages, str):
            stages = (stages,)
        if not isinstance(stages, dict):
            stages = {name: {} for name in stages}
        overrides = {name: dict(override) for name, override in stages.items() if override is not None}
        spans = {name: self._find(name) for name in overrides}
        names = [frozen_stages] if isinstance(frozen_stages, (str, int)) else frozen_stages
        frozen = set(overrides).intersection(names)
        if len(frozen) < len(names):
            raise ValueError(f'RKANet: frozen_stages={frozen_stages!r}, but the stages are {", ".join(overrides)}; '
                             'those of the inner backbone stand in its own config')
        while isinstance(backbone, dict) and 'in_channels' not in backbone and 'backbone' in backbone:
            backbone = backbone['backbone']  # of a PluggedBackbone
        in_channels = backbone.get('in_channels') if isinstance(backbone, dict) else None
        size = (input_size, input_size) if isinstance(input_size, int) else input_size
        measured = measure(self.backbone, spans, size, in_channels)

        self.bridges = ModuleDict()
        self._stages: dict[str, BridgedStage] = {}  # under the keys of bridges, where others may take their places
        for name, override in overrides.items():
            caller, sample = f'RKANet: stage {name!r}', measured[name].pop('out')
            ahead_of = measured[name].pop('ahead_of')
            stage_fusion = build(FUSIONS, override.pop('fusion', fusion), caller,
                                 channels=measured[name]['out_channels'])
            stage_block = build(MODELS, {'type': 'RKANBlock', **block, **override}, caller, **measured[name],
                                **(dict(with_cp=True) if with_cp else {}))
            bridge = BridgedStage(name, stage_block, stage_fusion, name in frozen, norm_eval)
            key = name.replace('.', '_').replace(':', '-')
            bridge.places[-1].ahead_of = ahead_of
            self.bridges[key] = self._stages[key] = bridge.to(sample.device, sample.dtype)
        self.training = self.backbone.training  # a module may be of a model that predicts
        self.bridges.train(self.training)
        self.settle()
        self.know_backbone()
        teach_lora()
        takes = list(inspect.signature(self.backbone.forward).parameters.values())
        several = len(takes) > 1 or any(each.kind is each.VAR_POSITIONAL for each in takes)
        if several and type(self).forward is RKANet.forward:
            self.forward = self._forward_all  # type: ignore[method-assign]
        if 'ConvNeXt' in type(self.backbone).__name__ and 'mmdet' in sys.modules:
            teach_mmdet(RKANet)

    @staticmethod
    def _build_backbone(cfg: dict) -> nn.Module:
        try:
            return MODELS.build(cfg)
        except KeyError as error:
            raise ValueError(f"RKANet: cannot build backbone {cfg.get('type')!r}: {error.args[0]}. Outside a config "
                             "with a default_scope its type needs one, e.g. 'mmdet.ResNet'") from error

    def _check_unbridged(self) -> None:
        inside = set(self.backbone.modules())
        for name, module in self.backbone.named_modules():
            for place in places_of(module):
                if isinstance(place.actor, BridgedStage) and place.actor not in inside:
                    raise ValueError(f'RKANet: {name!r} of this {type(self.backbone).__name__} carries the RKAN block '
                                     'of another RKANet, and would run both. Build a backbone for each, from a config '
                                     'or as a copy.deepcopy that is made before')

    def _find(self, name: str) -> tuple[nn.Module, nn.Module]:
        """First and last module of a stage."""
        modules = dict(self.backbone.named_modules(remove_duplicate=False))

        def inside(module: str) -> list[str]:
            return [f'{module}.{child}'.lstrip('.') for child, _ in modules[module].named_children()]

        first, _, last = name.partition(':')
        for part in (first, last or first):
            if part in modules and part:
                continue
            parent = part.rpartition('.')[0]
            while parent not in modules:
                parent = parent.rpartition('.')[0]
            there = inside(parent)
            while len(there) == 1 and inside(there[0]):  # an only child, as TIMMBackbone has
                there = inside(there[0])
            numbered = [child for child in there if child[-1].isdigit()] or [
                f'{child}.{len(inner) - 1}' for child in there if isinstance(inner := modules[child], nn.ModuleList)
                and len(inner)][:1]
            raise ValueError(f'RKANet: no stage {part!r} in {type(self.backbone).__name__}; it has {", ".join(there)}.'
                             + (f' Name one in stages, such as stages=({numbered[-1]!r}, )' if numbered else ''))
        return modules[first], modules[last or first]

    def settle(self) -> None:
        """See to it that the blocks act at the modules that have the stages' names now."""
        for key, bridge in list(self._stages.items()):
            if key not in self.bridges:  # somebody took it away
                del self._stages[key]
                for place in bridge.places:
                    place.leave()
                continue
            bridge.let_act(self.bridges[key])
            for place in bridge.places:
                try:
                    place.settle(self.backbone)
                except AttributeError as error:
                    raise AttributeError(f'RKANet: stage {place.name!r} is no longer in '
                                         f'{type(self.backbone).__name__}: {error}') from error

    def take_plain(self, state_dict: dict, prefix: str = '') -> None:
        """Rename, in place, the keys of a plain backbone's checkpoint for those of the inner backbone.

        What is in no state_dict may be of an older form, which the backbone translates by the names that it knows.
        """
        own, inner = self.state_dict(), self.backbone.state_dict()
        old = {}
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix):]
            if name in own or f'{prefix}backbone.{name}' in state_dict:
                continue
            if name in inner:
                state_dict[f'{prefix}backbone.{name}'] = state_dict.pop(key)
            elif name.partition('.')[0] not in OWN:
                old[key] = state_dict.pop(key)
        known = set(old)
        if old:
            self.backbone._load_from_state_dict(old, prefix, {}, False, [], [], [])
        for key, value in old.items():
            name = key[len(prefix):]
            of_inner = key not in known or name.partition('.')[0] in self.backbone._modules
            state_dict.setdefault(f'{prefix}backbone.{name}' if of_inner else key, value)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        self.take_plain(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _forward_image(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """The inner backbone's, with the blocks in it."""
        return self._forward_all(x)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner backbone's, with the blocks in it."""
        if args and is_traced(args[0]):
            self.settle()
            show_places(args[0].tracer)
            return self.backbone(*args, **kwargs)
        return self._forward_all(*args, **kwargs)

    forward.__wrapped__ = _forward_image  # type: ignore[attr-defined]  # whose arguments a tracer counts

    def _forward_all(self, *args: Any, **kwargs: Any) -> Any:
        """Instead of `forward` for backbones that take more than an image."""
        self.settle()
        if torch.compiler.is_compiling():
            return self.backbone(*args, **kwargs)
        for bridge in self._stages.values():
            bridge.begin()
        out = self.backbone(*args, **kwargs)
        for bridge in self._stages.values():
            bridge.check_run(self.backbone)
        return out

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError('RKANet: nn.DataParallel runs copies of the modules whose hooks call the blocks of the '
                           'original, on one device; use DistributedDataParallel, as mm does')

