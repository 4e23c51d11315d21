"""A norm that is folded into a KAN layer's weight and bias reaches its functions, too."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from rkan_mm.teaching import teach

from .basis.renew import has_numbers
from .mixin import LayerMixin

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far elements may differ from their multiple by rounding; else 1e-4."""


def put(layer: nn.Module, name: str, value: Tensor, like: Tensor | None = None) -> None:
    """Set a parameter to new values, of another shape or precision perhaps; ``like`` is one if there was none."""
    kind: Any = like if layer._parameters[name] is None else layer._parameters[name]
    layer.register_parameter(name, nn.Parameter(value.detach().to(kind), kind.requires_grad))


def norm_line(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift, in float64, that a batch norm in eval mode is by channel."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    return factor, (0 if norm.bias is None else norm.bias.double()) - norm.running_mean.double() * factor


def norms_first(self: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``named_children`` of a module whose norms are not to be folded.

    mmcv's `fuse_conv_bn` folds a norm into whatever convolution it has met before it.
    """
    yield from sorted(nn.Module.named_children(self), key=lambda child: not isinstance(child[1], _BatchNorm))


@torch.no_grad()
def fold_norm(layer: Any, norm: Any) -> Any:
    """Fold a batch norm in eval mode into the convolution or linear layer before it, functions and formulas too.

    Args:
        layer: of PyTorch or a KAN layer, not transposed.
        norm: of as many channels as the layer has outputs.

    Returns:
        The layer.
    """
    factor, shift = norm_line(norm)
    some = next(layer.parameters())
    put(layer, 'bias', shift + (0 if layer.bias is None else layer.bias.double() * factor), some)
    for name in ('weight', 'basis_weight'):
        value = getattr(layer, name, None)
        if value is not None:
            put(layer, name, value.double() * factor.reshape(-1, *[1] * (value.dim() - 1)))
    if getattr(layer, 'locked', None) is not None:
        layer.locked.scale(layer, factor.to(some))
    return layer


class Multiple(NamedTuple):
    """In the place of new weights of a layer without a base branch: by what its outputs are scaled, (outputs,)."""

    factor: Tensor


def teach_folding() -> None:
    """Have mmcv, mmengine and torch fold norms into KAN layers without a base branch, too.

    Their functions read and set ``weight``, which is None there, and fail. All else stays as it is.
    """
    efficient = 'efficient_conv_bn_eval_forward'
    for module, name, ours in (('mmcv.cnn.utils.fuse_conv_bn', '_fuse_conv_bn', _fuse_conv_bn),
                               ('torch.nn.utils.fusion', 'fuse_conv_bn_weights', _fuse_weights),
                               ('torch.nn.utils.fusion', 'fuse_linear_bn_weights', _fuse_weights),
                               ('mmcv.cnn.bricks.conv_module', efficient, _efficient_forward),
                               ('mmengine.model.efficient_conv_bn_eval', efficient, _efficient_forward)):
        teach(importlib.import_module(module), name, ours)


def _fuse_conv_bn(plain: Callable, conv: nn.Module, bn: nn.Module) -> nn.Module:
    return fold_norm(conv, bn) if isinstance(conv, Folding) and conv.weight is None else plain(conv, bn)


def _fuse_weights(plain: Callable, *args, **kwargs) -> tuple[Any, nn.Parameter]:
    weight, bias, mean, *others = inspect.signature(plain).bind(*args, **kwargs).args
    if weight is not None:
        return plain(*args, **kwargs)
    factor, bias = plain(mean.new_ones(len(mean), 1), bias, mean, *others[:4])
    return Multiple(factor.detach().flatten()), bias


def _efficient_forward(plain: Callable, bn: Any, conv: Any, x: Tensor) -> Tensor:
    if not isinstance(conv, Folding) or conv.weight is not None:
        return plain(bn, conv, x)
    factor = (bn.running_var + bn.eps).rsqrt()
    factor = factor if bn.weight is None else factor * bn.weight
    bias = -bn.running_mean if conv.bias is None else conv.bias - bn.running_mean
    bias = factor * bias if bn.bias is None else factor * bias + bn.bias
    return conv._conv_forward(x, Multiple(factor), bias)


class Folding(LayerMixin):
    """Mixin of `KANLayer`: other libraries know an ordinary layer there, which is a linear function of its weight.

    mmcv's ``fuse_conv_bn`` and torch's ``fuse_conv_bn_eval`` scale the outputs by new values of ``weight`` and, right
    after it, of ``bias``; ``efficient_conv_bn_eval`` of mmcv and mmengine calls ``_conv_forward`` with such values.
    Here ``weight`` is the base branch alone. Where each output's new weights are a multiple of its old ones, that
    multiple is taken for the functions, too.
    """

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self.__dict__['_loading'] = True  # which may assign parameters, and all of them
        try:
            super()._load_from_state_dict(*args, **kwargs)
        finally:
            del self.__dict__['_loading']

    def __setattr__(self, name: str, value: Any) -> None:
        if '_loading' in self.__dict__:
            return super().__setattr__(name, value)
        if name == 'weight' and isinstance(value, Multiple):
            factor = value.factor.to(self.basis_weight)
            self.__dict__['_folded'] = factor, torch.ones_like(factor, dtype=torch.bool)
            return None
        if name == 'weight' and type(value) is type(self._parameters.get(name)) is nn.Parameter:  # none of FSDP's
            self.__dict__['_folded'] = self._multiple(value) if value.shape == self.weight.shape else None
        super().__setattr__(name, value)
        folded = None if name == 'weight' else self.__dict__.pop('_folded', None)
        if name == 'bias' and folded is not None:
            factor, known = folded
            if not known.all() and self.basis_weight.any():
                raise RuntimeError(
                    f'{type(self).__name__}: something was folded into weight and bias, but by what output '
                    f'{int((~known).nonzero()[0])} was scaled cannot be told, as its weights are 0; its functions '
                    'would stay behind. Leave this layer out of the folding of norms')
            if value is not None and value.dtype != self.basis_weight.dtype:  # made of the norm's alone
                self._parameters['bias'] = nn.Parameter(value.detach().to(self.basis_weight), value.requires_grad)
            with torch.no_grad():
                put(self, 'basis_weight', self.basis_weight * self._by_output(factor))  # the old one may be another's
                if getattr(self, 'locked', None) is not None:
                    self.locked.scale(self, factor)
        return None

    def _multiple(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """By what each output's weights are multiplied in ``weight``, and for which it can be told; or they are not."""
        if not (has_numbers(self.weight) and has_numbers(weight)):
            return None
        old, new = (self._outputs_first(t.detach().double()) for t in (self.weight, weight.to(self.weight.device)))
        square = old.square().sum(1)
        known = square > 0
        factor = torch.where(known, (old * new).sum(1) / square.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
        tolerance = TOLERANCE.get(weight.dtype, 1e-4) * new.abs().amax(1, keepdim=True)
        if not ((new - factor[:, None] * old).abs() <= tolerance).all() or (known.all() and (factor == 1).all()):
            return None
        return factor.to(weight), known

    def _scaled(self, out: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """What the layer would give with these multiples of its weights, from what it gives, (B, outputs, ...)."""
        if weight is not self.weight:
            if isinstance(weight, Multiple):
                return self._line(out, weight.factor, bias)
            multiple = self._multiple(weight)
            if not weight.equal(self.weight) and (multiple is None or not multiple[1].all()):
                raise RuntimeError(f'{type(self).__name__}: called with weights that are no multiples of its own, by '
                                   'which its functions could be scaled')
            old, new = (self._outputs_first(t) for t in (self.weight, weight))
            return self._line(out, (old * new).sum(1) / old.square().sum(1), bias)
        return out

    def _line(self, out: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs times a factor for each, with another bias in the place of the layer's."""
        shape = -1, *[1] * (out.dim() - 2)
        out = out if self.bias is None else out - self.bias.reshape(shape)
        out = out * factor.reshape(shape).to(out.dtype)
        return out if bias is None else out + bias.reshape(shape).to(out.dtype)

    def _outputs_first(self, weight: Tensor) -> Tensor:
        """(outputs, all else) of weights in the shape of the ordinary layer's."""
        if getattr(self, 'transposed', False):  # (in, out / groups, ...)
            return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
        return weight.flatten(1)

    def _by_output(self, factor: Tensor) -> Tensor:
        """A factor for each output, to multiply the coefficients."""
        dims = self.basis_weight.dim()
        if getattr(self, 'transposed', False):
            inputs = self.in_channels // self.groups
            factor = factor.unflatten(0, (self.groups, 1, -1)).expand(-1, inputs, -1).flatten(0, 1)
            return factor.reshape(*factor.shape, *[1] * (dims - 2))
        return factor.reshape(-1, *[1] * (dims - 1))
