"""Layer-wise decay of learning rates: where a RKANet's parameters lie in the plain backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn


def plain_name(net: nn.Module, name: str) -> str:
    """The name of a RKANet's parameter in its plain backbone; those of a block stand behind the last of their stage."""
    kind, _, rest = name.partition('.')
    if kind == 'backbone':
        return rest
    if kind != 'bridges':
        return name
    key, _, rest = rest.partition('.')
    last = net.bridges[key].last
    names = [own for own, _ in net.backbone.get_submodule(last).named_parameters()]
    return '.'.join([last, *(names[-1].split('.')[:-1] if names else ()), 'bridge', rest])


def get_layer_depth(self: nn.Module, param_name: str, prefix: str = '') -> tuple[int, int]:
    """As from the inner backbone, for mmpretrain's ``LearningRateDecayOptimWrapperConstructor``."""
    if param_name.startswith(prefix):
        param_name = prefix + plain_name(self, param_name[len(prefix):])
    return self.backbone.get_layer_depth(param_name, prefix)


def no_weight_decay(self: nn.Module) -> set[str]:
    """As from a TIMM backbone, under the names that its parameters have here."""
    return {f'backbone.{name}' for name in self.backbone.no_weight_decay()}


def group_matcher(self: nn.Module, coarse: bool = False) -> Callable[[str], float]:
    """As from a TIMM backbone, for ``timm.optim.param_groups_layer_decay``: the layer of a parameter, by its name."""
    from timm.models._manipulate import group_with_matcher

    plain = {name: plain_name(self, name) for name, _ in self.named_parameters()}
    layers = group_with_matcher(((name, None) for name in plain.values()), self.backbone.group_matcher(coarse),
                                reverse=True)
    return lambda name: layers[plain[name]]


class PlainDetector:
    """A detector as mmdet's constructor reads it, with the plain backbone in the place of its RKANet."""

    def __init__(self, detector: nn.Module) -> None:
        self._detector, self.backbone = detector, detector.backbone.backbone

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._detector.named_parameters():
            if name.startswith('backbone.'):
                name = 'backbone.' + plain_name(self._detector.backbone, name.removeprefix('backbone.'))
            yield name, parameter


def teach_mmdet(net_type: type) -> None:
    """Put a subclass into the place of mmdet's ``LearningRateDecayOptimizerConstructor``.

    That one knows ConvNeXt by the name of the class and of the parameters, and nothing else. For all detectors but
    those with a RKANet the subclass is what it was.
    """
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as Theirs
    from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS

    if OPTIM_WRAPPER_CONSTRUCTORS.get(Theirs.__name__) is not Theirs:  # it is done, or somebody's own
        return

    class LearningRateDecayOptimizerConstructor(Theirs):
        __doc__ = Theirs.__doc__

        def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
            wrapped = isinstance(getattr(module, 'backbone', None), net_type)
            super().add_params(params, PlainDetector(module) if wrapped else module, **kwargs)

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=LearningRateDecayOptimizerConstructor, force=True)
