"""A KAN convolution whose one kernel serves every channel."""

from __future__ import annotations

import math

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from rkan_mm.models.ops import shared_polynomial_conv2d
from rkan_mm.registry import BASES, MODELS, build

NORMALIZATIONS = dict(tanh=torch.tanh, none=lambda x: x)


@MODELS.register_module()
class SharedKANConv2d(BaseModule):
    r"""KAN convolution with a kernel shared by all channels, the core of RKAN (arXiv 2410.05500).

    One function of the `k` taps of a patch is applied to the patches of every channel:
    :math:`y = \sum_p w_p\,a(x_p) + \sum_p s_p \sum_j c_{j,p} P_j(u(x_p))` with the basis functions :math:`P_j`, the
    normalisation `u` and the activation `a` of the base branch. Zero padding comes before the basis. The channels of
    input and output are the same, any number of them: (B, C, H, W) -> (B, C, H', W').

    Args:
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`.
        basis: config of a polynomial basis.
        normalization: ``'tanh'`` or ``'none'``, element-wise, before the basis.
        with_base: whether there is the linear branch `w`.
        base_act_cfg: activation `a`, a config for mmcv; None is the identity.
        with_scaler: whether there are the factors `s`.
        init_cfg: see mmengine.

    Raises:
        ValueError: unknown basis or normalisation.

    Example:
        >>> conv = SharedKANConv2d(3, stride=2, padding=1, basis=dict(type='Legendre', degree=2))
        >>> conv(torch.rand(1, 16, 14, 14)).shape, sum(p.numel() for p in conv.parameters())
        (torch.Size([1, 16, 7, 7]), 45)
    """

    def __init__(self,
                 kernel_size: int | tuple[int, int] = 3,
                 stride: int | tuple[int, int] = 1,
                 padding: int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1,
                 basis: dict = dict(type='Chebyshev', degree=3),  # noqa: B006
                 normalization: str = 'tanh',
                 with_base: bool = True,
                 base_act_cfg: dict | None = None,
                 with_scaler: bool = True,
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        if normalization not in NORMALIZATIONS:
            raise ValueError(f'SharedKANConv2d: no normalization {normalization!r}; there are '
                             f'{", ".join(NORMALIZATIONS)}')
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.normalization = normalization
        self.basis = build(BASES, basis, 'SharedKANConv2d')
        self.base_act = None
        if base_act_cfg is not None:
            from mmcv.cnn import build_activation_layer
            self.base_act = build_activation_layer(base_act_cfg)
        self.weight = nn.Parameter(torch.empty(self.basis.num_functions, *self.kernel_size))
        self.scaler = nn.Parameter(torch.empty(self.kernel_size)) if with_scaler else None
        self.base_weight = nn.Parameter(torch.empty(self.kernel_size)) if with_base else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The reference's initialisation, with k taps and f functions: c ~ N(0, 1/(k f)), w ~ N(0, 2/k), s = 1."""
        taps = math.prod(self.kernel_size)
        nn.init.normal_(self.weight, std=1 / math.sqrt(taps * self.basis.num_functions))
        if self.scaler is not None:
            nn.init.ones_(self.scaler)
        if self.base_weight is not None:
            nn.init.normal_(self.base_weight, std=math.sqrt(2 / taps))

    def init_weights(self) -> None:
        self.reset_parameters()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scaler is None else self.weight * self.scaler
        return shared_polynomial_conv2d(x, self.basis.to_monomials(weight), self.base_weight,
                                        NORMALIZATIONS[self.normalization], self.base_act, self.stride, self.padding,
                                        self.dilation)

    def extra_repr(self) -> str:
        shown = [f'kernel_size={self.kernel_size}', f'stride={self.stride}', f'padding={self.padding}']
        if self.dilation != (1, 1):
            shown.append(f'dilation={self.dilation}')
        if self.normalization != 'tanh':
            shown.append(f'normalization={self.normalization!r}')
        return ', '.join(shown)
