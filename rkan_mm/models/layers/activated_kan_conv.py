"""An activation, a KAN convolution and a norm as one kernel, where a GPU has one for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import Norm, activated_polynomial_conv2d, is_transformed
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
        own = kan._parameters  # a module looks long for what is its own
        y = activated_polynomial_conv2d(x, own['weight'], own['base_weight'], own['scaler'], kan.basis,
                                        kan.normalization == 'tanh', Window(kan.stride, kan.padding, kan.dilation),
                                        constant)
        if y is not None:
            return norm(y) if constant is None else y
    return norm(kan(before(act(x))))


def _is_taken(act: nn.Module, before: nn.Module, kan: nn.Module) -> bool:
    return (_is_plain(act, nn.SiLU) and _is_plain(before, nn.Identity) and _is_plain(kan, SharedKANConv2d)
            and isinstance(kan.basis, Polynomial) and kan.normalization in ELEMENTWISE and kan.mask is None
            and kan.base_act is None and kan.bias is None)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module runs the ``forward`` of its class, and nobody is told of it."""
    own = module.__dict__
    return type(module) is kind and not ('forward' in own or own['_forward_hooks'] or own['_forward_pre_hooks']
                                         or own['_backward_hooks'] or own['_backward_pre_hooks']
                                         or nn.modules.module._has_any_global_hook())


def _constant(norm: nn.Module) -> Norm | None:
    """What a kernel needs of a norm that is constant and has no gradients; None if it is not so."""
    if torch.is_grad_enabled() or norm.training or not _is_plain(norm, nn.BatchNorm2d):
        return None
    statistics, parameters = norm._buffers, norm._parameters
    found = statistics['running_mean'], statistics['running_var'], parameters['weight'], parameters['bias']
    return None if any(t is None for t in found) else (*found, norm.eps)
