"""An activation, a KAN convolution and a norm as one kernel, where a GPU has one for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import Norm, activated_polynomial_conv2d, is_transformed, is_watched
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window

from .basis import Polynomial
from .grid_update import ELEMENTWISE
from .shared_kan_conv import SharedKANConv2d


def activated_kan_conv2d(x: Tensor, act: nn.Module, before: nn.Module, kan: nn.Module, norm: nn.Module) -> Tensor:
    """``norm(kan(before(act(x))))``, (B, C, H, W) -> (B, C, H', W').

    With SiLU, no ``before`` and a :class:`SharedKANConv2d` of polynomials the first three are one kernel on a GPU, and
    a batch norm in eval mode without gradients is a part of it. Not so where anybody watches one of the modules.
    """
    if isinstance(x, Tensor) and x.is_cuda and not is_transformed() and _is_taken(act, before, kan):
        constant = _constant(norm)
        y = activated_polynomial_conv2d(x, _own(kan, 'weight'), _own(kan, 'base_weight'), _own(kan, 'scaler'),
                                        kan.basis, kan.normalization == 'tanh',
                                        Window(kan.stride, kan.padding, kan.dilation), constant)
        if y is not None:
            return norm(y) if constant is None else y
    return norm(kan(before(act(x))))


def _is_taken(act: nn.Module, before: nn.Module, kan: nn.Module) -> bool:
    return (_is_plain(act, nn.SiLU) and _is_plain(before, nn.Identity) and _is_plain(kan, SharedKANConv2d)
            and isinstance(kan.basis, Polynomial) and kan.basis.by_monomials and kan.normalization in ELEMENTWISE
            and kan.mask is None and kan.base_act is None and kan.bias is None)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module runs the ``forward`` of its class, and nobody is told of it."""
    return type(module) is kind and not is_watched(module)


def _own(module: nn.Module, name: str) -> Any:
    """A parameter. A module looks long for it; in replicas of `nn.DataParallel` and under FSDP it is an attribute."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def _constant(norm: nn.Module) -> Norm | None:
    """What a kernel needs of a norm that is constant and has no gradients; None if it is not so."""
    if torch.is_grad_enabled() or norm.training or not _is_plain(norm, nn.BatchNorm2d):
        return None
    statistics = norm._buffers
    found = statistics['running_mean'], statistics['running_var'], _own(norm, 'weight'), _own(norm, 'bias')
    return None if any(t is None for t in found) else (*found, norm.eps)
