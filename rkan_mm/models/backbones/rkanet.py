"""RKANet: RKAN blocks on the stages of any backbone, attached by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mmengine.model import BaseModule, ModuleDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from rkan_mm.models.layers.symbolic_trace import is_traced
from rkan_mm.registry import FUSIONS, MODELS, build

from .bridged_stage import BridgedStage
from .layer_decay import get_layer_depth, teach_mmdet
from .measure import measure
from .place import places_of, show_places
from .rfp import rfp_forward


@MODELS.register_module()
@MMENGINE_MODELS.register_module()
class RKANet(BaseModule):
    """A backbone whose stages carry RKAN blocks (Residual Kolmogorov-Arnold Network, arXiv 2410.05500).

    The inner backbone is built from its own config and stays as it is; hooks fuse the residual of a block into the
    output of its stage, which then feeds the next stage and the outputs. Blocks are siblings of the backbone, out of
    reach of its ``frozen_stages``, ``norm_eval`` and ``init_cfg``. Attributes that a RKANet does not have are those of
    the inner backbone, to read, to write and to delete.

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
        with_cp, norm_eval: of the blocks; those of the inner backbone stand in its own config.
        frozen_stages: names of the stages whose blocks and fusions are frozen: no gradients, norms in eval mode.
        pretrained: weights of the inner backbone, which the models of mmsegmentation hand to their backbone.
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
                 input_size: tuple[int, int] = (64, 64),
                 with_cp: bool = False,
                 norm_eval: bool = False,
                 frozen_stages: Sequence[str] = (),
                 pretrained: str | None = None,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        if pretrained is not None:
            backbone = self._with_pretrained(backbone, pretrained)
        self.backbone = backbone if isinstance(backbone, nn.Module) else self._build_backbone(backbone)
        self._check_unbridged()
        if isinstance(stages, str):
            stages = (stages,)
        if not isinstance(stages, dict):
            stages = {name: {} for name in stages}
        overrides = {name: dict(override) for name, override in stages.items() if override is not None}
        spans = {name: self._find(name) for name in overrides}
        frozen = {frozen_stages} if isinstance(frozen_stages, str) else set(frozen_stages)
        if not frozen <= set(overrides):
            raise ValueError(f'RKANet: frozen_stages={frozen_stages!r}, but the stages are {", ".join(overrides)}; '
                             'those of the inner backbone stand in its own config')
        while isinstance(backbone, dict) and 'in_channels' not in backbone and 'backbone' in backbone:
            backbone = backbone['backbone']  # of a PluggedBackbone
        in_channels = backbone.get('in_channels') if isinstance(backbone, dict) else None
        measured = measure(self.backbone, spans, input_size, in_channels)

        self.bridges = ModuleDict()
        for name, override in overrides.items():
            caller, sample = f'RKANet: stage {name!r}', measured[name].pop('out')
            stage_fusion = build(FUSIONS, override.pop('fusion', fusion), caller,
                                 channels=measured[name]['out_channels'])
            stage_block = build(MODELS, {'type': 'RKANBlock', **block, **override}, caller, **measured[name],
                                **(dict(with_cp=True) if with_cp else {}))
            bridge = BridgedStage(name, stage_block, stage_fusion, name in frozen, norm_eval)
            self.bridges[name.replace('.', '_').replace(':', '-')] = bridge.to(sample.device, sample.dtype)
        self._settle()
        if len(inspect.signature(self.backbone.forward).parameters) > 1:
            self.forward = self._forward_all  # type: ignore[method-assign]
        if 'ConvNeXt' in type(self.backbone).__name__ and 'mmdet' in sys.modules:
            teach_mmdet(RKANet)

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
        first, _, last = name.partition(':')
        for part in (first, last or first):
            if part in modules and part:
                continue
            parent = part.rpartition('.')[0]
            parent = parent if parent in modules else ''
            there = [f'{parent}.{child}'.lstrip('.') for child, _ in modules[parent].named_children()]
            numbered = [child for child in there if child[-1].isdigit()]
            raise ValueError(f'RKANet: no stage {part!r} in {type(self.backbone).__name__}; it has {", ".join(there)}.'
                             + (f' Name one in stages, such as stages=({numbered[-1]!r}, )' if numbered else ''))
        return modules[first], modules[last or first]

    def _settle(self) -> None:
        """See to it that the blocks act at the modules that have the stages' names now."""
        for bridge in self.bridges.values():
            for place in bridge.places:
                try:
                    place.settle(self.backbone)
                except AttributeError as error:
                    raise AttributeError(f'RKANet: stage {place.name!r} is no longer in '
                                         f'{type(self.backbone).__name__}: {error}') from error

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
        """The inner backbone's, with the blocks in it."""
        self._settle()
        if is_traced(x):
            show_places(x.tracer)
        return self.backbone(x)

    def _forward_all(self, *args: Any, **kwargs: Any) -> Any:
        """Instead of `forward`, whose arguments a tracer can count, for backbones that take more than images."""
        self._settle()
        return self.backbone(*args, **kwargs)

    # -- what recipes ask of a backbone --------------------------------------------------------------------------------
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get('_modules', {}).get('backbone')
            if inner is None or name in OWN or (name.startswith('_') and (name.startswith('__')
                                                                          or not hasattr(type(inner), name))):
                raise
        found = getattr(inner, name)
        if name in ADAPTED:
            return ADAPTED[name].__get__(self)
        self._settle()  # a method may run the backbone
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get('_modules', {}).get('backbone')
        own = (name in OWN or name.startswith('_') or name in self.__dict__ or name in self._modules
               or hasattr(type(self), name))
        if inner is None or own or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)

    def __delattr__(self, name: str) -> None:
        inner = self._modules.get('backbone')
        if inner is None or any(name in own for own in (self.__dict__, self._modules, self._parameters, self._buffers)):
            super().__delattr__(name)
        else:
            delattr(inner, name)

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError('RKANet: nn.DataParallel runs copies of the modules whose hooks call the blocks of the '
                           'original, on one device; use DistributedDataParallel, as mm does')


OWN = ('backbone', 'bridges')
"""Modules of a RKANet, whatever the inner backbone has: it may be one, too."""

ADAPTED = dict(get_layer_depth=get_layer_depth, rfp_forward=rfp_forward)
"""Methods of backbones that a RKANet has in its own form, where the inner backbone has them."""
