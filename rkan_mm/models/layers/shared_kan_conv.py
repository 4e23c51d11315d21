"""A KAN convolution whose one kernel serves every channel."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from rkan_mm.models.ops import (
    as_type_of,
    folded,
    identity,
    refuse_freed,
    refuse_numbers_to_meta,
    shared_polynomial_conv2d,
    static_shape,
)
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window as Taps
from rkan_mm.registry import BASES, MODELS, build

from .base_act import build_base_act
from .basis import GridBasis, Polynomial, Window
from .basis.renew import has_numbers
from .copies import new_origin
from .grid_update import ELEMENTWISE
from .half import HALF, as_autocast
from .initialising import is_set
from .recompute import any_needs_grad, recompute
from .shared_functions import SharedFunctions
from .symbolic_trace import as_leaf, is_traced
from .whole_weights import laid_out
from .window import SetLater

PATCHWISE = {
    'min-max': lambda u, conv: 2 * (u - u.amin(1, True)) / (u.amax(1, True) - u.amin(1, True) + 1e-8) - 1,
    'standardization': lambda u, conv: (u - u.mean(1, True)) / (u.std(1, keepdim=True) + 1e-8),
    'arctan': lambda u, conv: 2 / math.pi * torch.atan((u - u.mean(1, True)) * conv.arctan_scale),
    'layer_norm': lambda u, conv: conv.tap_norm(u.transpose(1, 2)).transpose(1, 2),
}
"""Normalisations over the taps of each patch, (B * C, taps, L)."""


@MODELS.register_module()
class SharedKANConv2d(SetLater, SharedFunctions, BaseModule):
    r"""KAN convolution with a kernel shared by all channels, the core of RKAN (arXiv 2410.05500).

    One function of the `k` taps of a patch is applied to the patches of every channel:
    :math:`y = \sum_p w_p\,a(x_p) + \sum_p s_p \sum_j c_{j,p} P_j(u(x_p))` with the basis functions :math:`P_j`, the
    normalisation `u` and the activation `a` of the base branch. Zero padding comes before the basis. The channels of
    input and output are the same, any number of them: (B, C, H, W) -> (B, C, H', W'). The functions, one for each tap,
    can be penalised, ranked and pruned, and a grid under them follows the data, as in every KAN layer here.

    Args:
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`; ``'same'`` is for odd kernels.
        basis: config of a basis. Polynomials have a fast form to degree 6.
        normalization: `u`, before the basis: element-wise ``'tanh'`` or ``'none'``, or over the taps of each patch
            ``'min-max'``, ``'standardization'``, ``'arctan'`` or ``'layer_norm'``, which need explicit patches and are
            slow; None takes what the basis needs.
        with_base: whether there is the linear branch `w`.
        base_act_cfg: activation `a`, a config for mmcv; None is the identity.
        with_scaler: whether there are the factors `s`; None takes the reference's choice, which has none for RBFs.
        bias: None takes the reference's choice, which has one for RBFs only.
        normalize_base: whether `w` sees the patch after a normalisation over its taps, as the reference's B-splines
            do.
        start: ``'published'``, or ``'orthonormal'``: functions that start bent and orthonormal for inputs of unit
            variance, a base branch that starts at zero, and outputs of unit variance.
        init_cfg: see mmengine.

    Raises:
        ValueError: unknown basis, normalisation, start or padding.

    Example:
        >>> conv = SharedKANConv2d(3, stride=2, padding=1, basis=dict(type='Legendre', degree=2))
        >>> conv(torch.rand(1, 16, 14, 14)).shape, sum(p.numel() for p in conv.parameters())
        (torch.Size([1, 16, 7, 7]), 45)
    """

    def __init__(self,
                 kernel_size: int | tuple[int, int] = 3,
                 stride: int | tuple[int, int] = 1,
                 padding: int | tuple[int, int] | str = 0,
                 dilation: int | tuple[int, int] = 1,
                 basis: dict = dict(type='Chebyshev', degree=3),  # noqa: B006
                 normalization: str | None = None,
                 with_base: bool = True,
                 base_act_cfg: dict | None = None,
                 with_scaler: bool | None = None,
                 bias: bool | None = None,
                 normalize_base: bool = False,
                 start: str = 'published',
                 init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = self._in_numbers(padding) if isinstance(padding, str) else _pair(padding)
        self.basis = build(BASES, basis, 'SharedKANConv2d')
        self.normalization = normalization or self.basis.normalization
        if self.normalization not in (*ELEMENTWISE, *PATCHWISE):
            raise ValueError(f'SharedKANConv2d: no normalization {normalization!r}; there are '
                             f'{", ".join((*ELEMENTWISE, *PATCHWISE))}')
        if start not in ('published', 'orthonormal') or (start == 'orthonormal'
                                                          and self.normalization not in ELEMENTWISE):
            raise ValueError(f"SharedKANConv2d: start must be 'published' or, with an element-wise normalization, "
                             f"'orthonormal'; got {start!r} with {self.normalization!r}")
        self.normalize_base, self.start = normalize_base, start
        self.base_act = build_base_act(base_act_cfg)
        taps = math.prod(self.kernel_size)
        self.arctan_scale = nn.Parameter(torch.empty(())) if normalization == 'arctan' else None
        self.tap_norm = nn.LayerNorm(taps) if normalization == 'layer_norm' else None
        radial = isinstance(self.basis, Window)
        self.weight = nn.Parameter(torch.empty(self.basis.num_functions, *self.kernel_size))
        self.scaler = nn.Parameter(torch.empty(self.kernel_size)) if (
            not radial if with_scaler is None else with_scaler) else None
        self.base_weight = nn.Parameter(torch.empty(self.kernel_size)) if with_base else None
        self.bias = nn.Parameter(torch.empty(())) if (radial and with_base if bias is None else bias) else None
        self.origin = new_origin()
        self.reset_parameters()

    def _in_numbers(self, padding: str) -> tuple[int, int]:
        around = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if padding == 'same' and self.stride == (1, 1) and not any(n % 2 for n in around):
            return around[0] // 2, around[1] // 2
        if padding != 'valid':
            raise ValueError("SharedKANConv2d: padding must be one or two numbers, 'valid' or, with stride 1 and as "
                             f"much on both sides, 'same'; got {padding!r} with stride={self.stride}, "
                             f'kernel_size={self.kernel_size} and dilation={self.dilation}')
        return 0, 0

    def reset_parameters(self) -> None:
        """The reference's initialisation for k taps and f functions.

        Without a grid c ~ N(0, 1/(k f)), w ~ N(0, 2/k), s = 1; with one, w and s are uniform within +-1/sqrt(k), as
        is the bias, and c is what the basis wants.
        """
        taps = math.prod(self.kernel_size)
        bound = 1 / math.sqrt(taps)
        on_grid = isinstance(self.basis, GridBasis)
        self.basis.reset_parameters()
        self.basis.init_weight(self.weight[None, None], taps)
        if self.scaler is not None:
            nn.init.uniform_(self.scaler, -bound, bound) if on_grid else nn.init.ones_(self.scaler)
        if self.base_weight is not None:
            if on_grid:
                nn.init.uniform_(self.base_weight, -bound, bound)
            else:
                nn.init.normal_(self.base_weight, std=math.sqrt(2 / taps))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        if self.arctan_scale is not None:
            nn.init.constant_(self.arctan_scale, 0.1)
        if self.start == 'orthonormal':
            self._start_orthonormal()

    @torch.no_grad()
    def _start_orthonormal(self) -> None:
        """Every tap a random mixture, of variance 1 / k, of functions that are orthonormal under N(0, 1)."""
        if not has_numbers(self.weight):
            return
        points, shares = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(64))
        values = copy.deepcopy(self.basis).to('cpu', torch.float64)(ELEMENTWISE[self.normalization](points))  # (64, F)
        shares = (shares / shares.sum())[:, None]
        values = values - (shares * values).sum(0)
        variances, directions = torch.linalg.eigh(values.T @ (shares * values))
        met = variances > 1e-6 * variances.max()
        mixture = torch.randn(int(met.sum()), *self.kernel_size, dtype=torch.float64, device='cpu')
        mixture /= math.sqrt(met.sum() * math.prod(self.kernel_size))
        self.weight.copy_(torch.einsum('fm,mhw->fhw', directions[:, met] / variances[met].sqrt(), mixture))
        if self.scaler is not None:
            nn.init.ones_(self.scaler)
        if self.base_weight is not None:
            nn.init.zeros_(self.base_weight)

    def init_weights(self) -> None:
        """Draws anew, but where the model around has set a parameter: what it says stays."""
        if not is_set(self):
            self.reset_parameters()
        super().init_weights()

    def forward(self, input: Tensor) -> Tensor:  # by the name that it has in PyTorch's layers
        x = input
        if is_traced(x):
            return as_leaf(self, x)
        if not isinstance(x, Tensor) or x.dim() not in (3, 4) or x.layout is not torch.strided or x.is_nested:
            if isinstance(x, Tensor) and x.is_mkldnn:
                return self.forward(x.to_dense()).to_mkldnn()
            F.conv2d(x, self.weight.new_zeros(1, 1, *self.kernel_size))  # says what is wrong, as a plain one does
        if x.dim() == 3:  # without a batch
            return self.forward(x.unsqueeze(0)).squeeze(0)
        refuse_numbers_to_meta(self.weight, x, identity)
        refuse_freed(x)
        x = as_autocast(x)
        basis = self.basis  # a module looks long for what is its own
        if isinstance(basis, Polynomial) and self.normalization in ELEMENTWISE and basis.by_monomials:
            weight, base_weight = self.weight, self.base_weight
            if self.mask is not None or weight.dtype in HALF:
                weight, base_weight = (folded(self.masked, w, constant=not self.training)
                                       for w in (weight, base_weight))
            out = shared_polynomial_conv2d(x, weight, base_weight, ELEMENTWISE[self.normalization], self.base_act,
                                           self.stride, self.padding, self.dilation, self.scaler, basis,
                                           constant=not self.training)
        else:
            before = basis, self.tap_norm, self.base_act
            whole = self if any_needs_grad(x, self.arctan_scale, self.scaler, *before) else None
            out = recompute(self._over_patches if self.normalization in PATCHWISE else self._over_planes, x,
                            reads=(*before, whole))
            out = laid_out(out, x)
        return out if self.bias is None else out + self.bias

    def _over_planes(self, x: Tensor) -> Tensor:
        """Every channel as an image of one channel, expanded to the values of its functions, and one convolution."""
        batch, channels = x.shape[0], static_shape(x)[1]
        zero, kernel, constant = folded(self._kernel_of_planes, constant=not self.training)
        x = x.flatten(0, 1).unsqueeze(1)  # (B, C, H, W) -> (B * C, 1, H, W)
        u = ELEMENTWISE[self.normalization](x)
        planes = as_type_of(self.basis(u.float() if u.dtype in HALF else u, 1).squeeze(1) - zero, x)
        if self.base_weight is not None:
            planes = torch.cat([x if self.base_act is None else self.base_act(x), planes], 1)
        out = F.conv2d(planes, kernel, None, self.stride, self.padding, self.dilation) + constant
        return out.reshape(batch, channels, *out.shape[2:])

    def _kernel_of_planes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values of the functions at 0, subtracted so that padded taps need nothing more; the kernel; what these give.

        (1, F, 1, 1), (1, P, kh, kw) and a number.
        """
        weight = self.scaled()
        zero = self.basis.at_zero(weight)  # (1, F)
        kernel = weight if self.base_weight is None else torch.cat([self.masked(self.base_weight)[None], weight])
        return zero.reshape(1, -1, 1, 1), kernel[None], (zero[0] * weight.sum((1, 2))).sum()

    def _over_patches(self, x: Tensor) -> Tensor:
        """The definition: unfold, normalise each patch, apply its functions."""
        weight = folded(self.scaled, constant=not self.training)
        size = Taps(self.stride, self.padding, self.dilation).output_size(x, weight)
        patches = F.unfold(x.flatten(0, 1).unsqueeze(1), self.kernel_size, self.dilation, self.padding, self.stride)
        u = self.normalized(patches)  # (B * C, taps, L)
        values = as_type_of(self.basis(u.float() if u.dtype in HALF else u, 1), x)
        out = weight.flatten(1).T.flatten() @ values.flatten(1, 2)  # no einsum: ONNX has none in opset 11
        if self.base_weight is not None:
            base = u if self.normalize_base else patches
            base = base if self.base_act is None else self.base_act(base)
            out = out + self.masked(self.base_weight).flatten() @ base
        return out.reshape(*x.shape[:2], *size)

    def normalized(self, patches: Tensor) -> Tensor:
        """What the functions see of patches, (n, taps, L)."""
        if self.normalization in PATCHWISE:
            return PATCHWISE[self.normalization](patches, self)
        return ELEMENTWISE[self.normalization](patches)

    def extra_repr(self) -> str:
        shown = [f'kernel_size={self.kernel_size}', f'stride={self.stride}', f'padding={self.padding}']
        if self.dilation != (1, 1):
            shown.append(f'dilation={self.dilation}')
        if self.normalization != self.basis.normalization:
            shown.append(f'normalization={self.normalization!r}')
        return ', '.join(shown)
