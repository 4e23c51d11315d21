"""A norm that is folded into a KAN layer's weight and bias reaches its functions, too."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from .mixin import LayerMixin

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far elements may differ from their multiple by rounding; else 1e-4."""


def put(layer: nn.Module, name: str, value: Tensor, like: Tensor | None = None) -> None:
    """Set a parameter to new values, of another shape or precision perhaps; ``like`` is one if there was none."""
    kind: Any = like if layer._parameters[name] is None else layer._parameters[name]
    layer._parameters[name] = nn.Parameter(value.detach().to(kind), kind.requires_grad)


def norm_line(norm: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift, in float64, that a batch norm in eval mode is by channel."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    return factor, (0 if norm.bias is None else norm.bias.double()) - norm.running_mean.double() * factor


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


def teach_mmcv() -> None:
    """Have ``fuse_conv_bn`` of mmcv, which mmdet and mmpretrain call, fold norms into KAN layers by `fold_norm`.

    It reads and sets ``weight``, which a layer without a base branch has not.
    """
    from mmcv.cnn.utils import fuse_conv_bn as _  # noqa: F401  a function that hides its module
    module = sys.modules['mmcv.cnn.utils.fuse_conv_bn']
    plain = getattr(module, '_fuse_conv_bn', None)
    if plain is None or hasattr(plain, 'plain'):
        return

    def fuse_conv_bn(conv: nn.Module, bn: nn.Module) -> nn.Module:
        return fold_norm(conv, bn) if isinstance(conv, Folding) and conv.weight is None else plain(conv, bn)
    fuse_conv_bn.plain = plain  # type: ignore[attr-defined]
    module._fuse_conv_bn = fuse_conv_bn  # type: ignore[attr-defined]


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
            with torch.no_grad():
                self.basis_weight.mul_(self._by_output(factor))
                if getattr(self, 'locked', None) is not None:
                    self.locked.scale(self, factor)
        return None

    def _multiple(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """By what each output's weights are multiplied in ``weight``, and for which it can be told; or they are not."""
        if self.weight.is_meta or weight.is_meta:
            return None
        old, new = (self._outputs_first(t.detach().double()) for t in (self.weight, weight.to(self.weight.device)))
        square = old.square().sum(1)
        known = square > 0
        factor = torch.where(known, (old * new).sum(1) / square.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
        tolerance = TOLERANCE.get(weight.dtype, 1e-4) * new.abs().amax(1, keepdim=True)
        if not ((new - factor[:, None] * old).abs() <= tolerance).all() or (known.all() and (factor == 1).all()):
            return None
        return factor.to(weight), known

    def _scaled(self, out: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer would give with these multiples of its weights, from what it gives, (B, outputs, ...)."""
        if weight is not self.weight:
            multiple = self._multiple(weight)
            if not weight.equal(self.weight) and (multiple is None or not multiple[1].all()):
                raise RuntimeError(f'{type(self).__name__}: called with weights that are no multiples of its own, by '
                                   'which its functions could be scaled')
            old, new = (self._outputs_first(t) for t in (self.weight, weight))
            factor = (old * new).sum(1) / old.square().sum(1)
            shape = -1, *[1] * (out.dim() - 2)
            out = out if self.bias is None else out - self.bias.reshape(shape)
            out = out * factor.reshape(shape).to(out.dtype)
            return out if bias is None else out + bias.reshape(shape).to(out.dtype)
        return out

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
