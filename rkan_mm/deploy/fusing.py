"""Models made lean for inference: what is linear and stands side by side becomes one."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from rkan_mm.models.layers import SharedKANConv2d
from rkan_mm.models.layers.basis import OrthogonalPolynomial
from rkan_mm.models.layers.folding import fold_norm, norm_line, put
from rkan_mm.models.layers.kan_conv import KANConv, KANConvTranspose2d
from rkan_mm.models.layers.kan_layer import KANLayer

from .unread import drop_unread

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Fused(list):
    """What was done, a sentence each, as ``module: what``; as text, how often what."""

    def add(self, name: str, what: str) -> None:
        self.append(f'{name}: {what}')

    def __str__(self) -> str:
        kinds = Counter(' '.join(line.partition(': ')[2].split()[:2]) for line in self)
        return ', '.join(f'{count} x {kind}' for kind, count in kinds.items()) or 'nothing to fuse'


@torch.no_grad()
def fuse(model: nn.Module, report: Fused | None = None) -> nn.Module:
    """Make a model lean for inference, in place; it computes the same.

    Scalers and masks go into the coefficients of KAN layers, constants of their functions into the next bias or norm,
    norms into the convolution before them or the 1x1 convolution behind them, and channels that nothing reads are
    dropped. Which module follows which is seen in a symbolic trace, of the largest parts that have one; modules with
    hooks of their own, and those that stand at several places, are left as they are.

    Args:
        model: in eval mode.
        report: takes what was done, which is logged in short anyway.

    Returns:
        The model. It can be saved whole (``torch.save(model, path)``), or as a state_dict, which fits the model that is
        built and fused again, unless channels were dropped.

    Raises:
        ValueError: a norm or KAN layer is in training mode.

    Example:
        >>> model = rkan_mm.fuse(model.eval())
    """
    for name, module in model.named_modules():
        if module.training and isinstance(module, _BatchNorm | KANLayer | SharedKANConv2d):
            raise ValueError(f'fuse: {name or type(module).__name__} is in training mode: call model.eval() before')
    report = Fused() if report is None else report
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name, module in model.named_modules():
        if isinstance(module, KANLayer) or type(module) is SharedKANConv2d:
            _merge(module, name, report)
    for name, traced in _parts(model):
        _Part(model, name, traced, places, report).fuse()
    print_log(f'fuse: {report}', 'current')
    return model


def _merge(layer: Any, name: str, report: Fused) -> None:
    """Scaler, mask and, where it has a bias of its own, the constant of one layer."""
    if getattr(layer, 'locked', None) is not None:
        report.add(name, 'left alone, it has formulas')
        return
    shared = isinstance(layer, SharedKANConv2d)
    base, coefficients = ('base_weight', 'weight') if shared else ('weight', 'basis_weight')
    if is_parametrized(layer) or coefficients not in layer._parameters:
        report.add(name, 'left alone, its weights are computed from others')
        return
    if layer.scaler is not None:
        scaler = layer.scaler if shared else layer.scaler.unsqueeze(2)
        put(layer, coefficients, getattr(layer, coefficients) * scaler)
        layer.scaler = None
        report.add(name, 'scaler merged')
    if layer.mask is not None:
        put(layer, coefficients, getattr(layer, coefficients) * (layer.mask if shared else layer.mask.unsqueeze(2)))
        if getattr(layer, base) is not None:
            put(layer, base, getattr(layer, base) * layer.mask)
        layer.mask = None
        report.add(name, 'mask merged')
    if not shared and layer.basis.constant_first and not isinstance(layer, KANConvTranspose2d):
        constant = layer.basis_weight[:, :, 0].double().flatten(1).sum(1)
        put(layer, 'bias', constant + (0 if layer.bias is None else layer.bias.double()), layer.basis_weight)
        rest = layer.basis_weight.clone()  # tied ones are another layer's, too
        rest[:, :, 0] = 0
        put(layer, 'basis_weight', rest)
        report.add(name, 'constant summed into the bias')


def _parts(model: nn.Module, prefix: str = '') -> Iterator[tuple[str, GraphModule]]:
    """The largest parts that can be traced."""
    if not any(model.children()):
        return
    try:
        settings = {name: parameter.default for name, parameter in inspect.signature(model.forward).parameters.items()
                    if parameter.default is not parameter.empty}
        yield prefix, torch.fx.symbolic_trace(model, settings or None)
        return
    except Exception:
        pass  # it branches by values, or is called otherwise
    for name, child in model.named_children():
        yield from _parts(child, f'{prefix}{name}.')


class _Part:
    """A traced part of a model, which is changed in place.

    Args:
        model: the whole.
        prefix: where the part is.
        traced: its trace.
        places: how often a module stands in the model, by id.
        report: what was done.
    """

    def __init__(self, model: nn.Module, prefix: str, traced: GraphModule, places: Counter, report: Fused) -> None:
        self.model, self.prefix, self.places, self.report = model, prefix, places, report
        self.nodes = list(traced.graph.nodes)
        self.calls = Counter(node.target for node in self.nodes if node.op == 'call_module')

    def module(self, node: Any) -> Any:
        """What a node calls, where all that it does is seen and it may be changed."""
        if not isinstance(node, Node) or node.op != 'call_module':
            return None
        module = self.model.get_submodule(self.prefix + str(node.target))
        if is_parametrized(module) or any(getattr(module, kind, None) for kind in (
                '_forward_hooks', '_forward_pre_hooks', 'locked')):
            return None
        alone = self.calls[node.target] == self.places.get(id(module), 1) == 1
        return module if alone or not module.state_dict() else None

    def name(self, node: Node) -> str:
        return self.prefix + str(node.target)

    def fuse(self) -> None:
        for node in self.nodes:
            module = self.module(node)
            if type(module) is SharedKANConv2d:
                self._move_constant(node, module)
            elif isinstance(module, _BatchNorm) and module.running_mean is not None:
                self._fold(node, module)
        drop_unread(self.nodes, self.module, lambda node, what: self.report.add(self.name(node), what))

    def _fold(self, node: Node, norm: _BatchNorm) -> None:
        before, after = node.args[0], self._only_user(node)
        while isinstance(self.module(before), nn.Identity) and len(before.users) == 1:
            before = before.args[0]
        layer = self.module(before) if isinstance(before, Node) and len(before.users) == 1 else None
        if type(layer) in CONVS or (isinstance(layer, KANConv) and not isinstance(layer, KANConvTranspose2d)):
            fold_norm(layer, norm)
            self.report.add(self.name(node), f'norm folded into {before.target}')
        elif _is_linear_in_channels(following := self.module(after)):
            factor, shift = norm_line(norm)
            self._shift(following, shift)
            put(following, 'weight', following.weight.double() * factor.reshape(1, -1, 1, 1))
            self.report.add(self.name(node), f'norm folded into {after.target}, behind it')
        else:
            return
        self.model.set_submodule(self.name(node), nn.Identity())

    def _shift(self, conv: Any, shift: Tensor) -> None:
        """Add to the input of a 1x1 convolution."""
        bias = conv.weight.double().flatten(1) @ shift
        put(conv, 'bias', bias + (0 if conv.bias is None else conv.bias.double()), conv.weight)

    def _move_constant(self, node: Node, layer: SharedKANConv2d) -> None:
        """What its functions are at 0 goes to the norm or 1x1 convolution behind it."""
        after = self._only_user(node)
        following = self.module(after)
        norm = isinstance(following, _BatchNorm) and following.running_mean is not None
        if not isinstance(layer.basis, OrthogonalPolynomial) or layer.normalization not in ('tanh', 'none') or not (
                norm or _is_linear_in_channels(following)):
            return
        weight = layer.weight.double()
        at_zero = layer.basis.at_zero(weight).reshape(-1, 1, 1)
        constant = (weight * at_zero).sum(0)
        changed = weight.clone()
        changed[0] -= constant
        put(layer, 'weight', changed)
        number = constant.sum() + (0 if layer.bias is None else layer.bias.double())
        layer.bias = None
        if norm:
            following.running_mean.copy_(following.running_mean.double() - number)
        else:
            self._shift(following, number.expand(following.in_channels))
        self.report.add(self.name(node), f'constant moved into {after.target}')

    def _only_user(self, node: Node) -> Any:
        while len(node.users) == 1:
            node = next(iter(node.users))
            if not isinstance(self.module(node), nn.Identity):
                return node
        return None


def _is_linear_in_channels(module: Any) -> bool:
    return (type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.groups == 1
            and module.padding in ((0, 0), 'valid', 'same'))

