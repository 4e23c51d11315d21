"""What is done to the weights of a KAN layer from outside is done to all of them, or not at all."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rkan_mm.teaching import teach

from .mixin import LayerMixin
from .tied import every_layer


def laid_out(out: Tensor, *like: Tensor | None) -> Tensor:
    """A map, in channels_last where one of the others, the input or the weights, is, as PyTorch's convolutions do."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return out
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(out.dim())
    for t in like if layout else ():
        if t is not None and t.dim() == out.dim() and not t.is_contiguous() and t.is_contiguous(memory_format=layout):
            return out.contiguous(memory_format=layout)
    return out


class WholeWeights(LayerMixin):
    """Mixin of KAN layers: norms and pruning of weights by torch, and layouts in memory.

    A weight norm, a spectral norm or a pruning of ``weight`` is one of a linear layer. In a KAN layer it would reach
    the base branch (or, where one kernel serves all channels, the functions) and leave the rest free, so it is refused.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == 'weight_orig':  # of torch.nn.utils.prune
            refuse(self)
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Layouts such as channels_last are for the weights of an ordinary layer; these have one dimension more."""
        name = self.coefficients_name
        # _v and _g are of torch's older weight norm, _orig of its pruning and older spectral norm
        found = [self._parameters.get(each) for each in (name, f'{name}_v', f'{name}_g', f'{name}_orig')]
        if nn.utils.parametrize.is_parametrized(self, name):
            found += getattr(self, 'parametrizations')[name].parameters(recurse=False)  # noqa: B009
        shapes = {t.shape for t in found if t is not None}  # none: FSDP keeps them apart meanwhile

        def apply(t: Tensor) -> Tensor:
            flat = t.dim() > 3 and t.shape in shapes and t.is_contiguous()
            return fn(t.view(len(t), -1)).view(t.shape) if flat else fn(t)

        return super()._apply(apply, recurse)


def refuse(layer: nn.Module) -> NoReturn:
    """Raise TypeError for what would be done to a part of a layer's weights."""
    raise TypeError(
        f'{type(layer).__name__}: a spectral norm, weight norm, pruning or other parametrization of weight would leave '
        'out the rest of the functions. Bound them by KANRegularizationHook or weight decay, prune them by '
        "rkan_mm.models.prune, or take an ordinary layer here (with_spectral_norm=False of mmcv's ConvModule)")


def teach_norms() -> None:
    """Have torch ask before it takes the weight of a layer away, or changes it as ``orthogonal`` does.

    And have a `nn.TransformerEncoderLayer` call the layers in it: without gradients it computes of their ``weight``.
    """
    for name, norm in (('weight_norm', 'WeightNorm'), ('spectral_norm', 'SpectralNorm')):
        module = importlib.import_module(f'torch.nn.utils.{name}')  # of the name of its function
        teach(getattr(module, norm), 'apply', _norm)
    teach(torch.nn.utils.parametrize.ParametrizationList, '__init__', _parametrize)
    for method in ('__setattr__', 'add_module'):
        teach(nn.TransformerEncoderLayer, method, _set_in_encoder)
    for module in (importlib.import_module('torch.nn.utils.memory_format'), torch.nn.utils):
        for name in ('convert_conv2d_weight_memory_format', 'convert_conv3d_weight_memory_format'):
            teach(module, name, _lay_out)


def _lay_out(plain: Callable, module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """There is no ``weight`` to lay out where a layer has no base branch."""
    bare = isinstance(module, WholeWeights) and module.weight is None
    return module if bare else plain(module, memory_format)


def _set_in_encoder(plain: Callable, encoder: nn.Module, name: str, module: Any) -> None:
    plain(encoder, name, module)
    if isinstance(module, WholeWeights):
        encoder.activation_relu_or_gelu = 0  # else it has a fast path


def _norm(plain: Callable, module: nn.Module, name: str, *args, **kwargs) -> Any:
    if name == 'weight' and isinstance(module, WholeWeights):
        refuse(module)
    return plain(module, name, *args, **kwargs)


def _parametrize(plain: Callable, self: nn.Module, modules: Sequence[nn.Module], original: Tensor, *args,
                 **kwargs) -> None:
    for layer in every_layer():
        if vars(layer).get('_parameters', {}).get('weight') is original:
            refuse(layer)
    plain(self, modules, original, *args, **kwargs)
