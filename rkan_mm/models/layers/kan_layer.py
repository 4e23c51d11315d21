"""What KAN convolutions and the KAN linear layer share: functions for every weight of an ordinary layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from rkan_mm.models.ops import (
    Functions,
    as_type_of,
    autocast_dtype,
    can_expand,
    folded,
    fused_conv2d,
    is_transformed,
    is_watched,
    refuse_freed,
    refuse_numbers_to_meta,
)
from rkan_mm.registry import BASES, build

from .base_act import build_base_act
from .basis import Basis
from .basis.renew import placed_as
from .copies import new_origin
from .folding import Folding
from .grid_update import ELEMENTWISE, GridUpdate
from .half import HALF, as_autocast
from .initialising import is_set
from .recompute import any_needs_grad
from .sparsity import Sparsity
from .weight_alone import teach_parts
from .whole_weights import WholeWeights

INITS = ('parent', 'efficient_kan', 'fast_kan', 'faster_kan')
NO_STRIDES = (torch._mkldnn, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
COMPILED_ACTS = {type(None): 'identity', nn.SiLU: 'silu'}


class KANLayer(GridUpdate, Sparsity, Folding, WholeWeights):
    r"""Mixin before a linear or convolutional layer of PyTorch: a learnable function in the place of each weight.

    :math:`\phi(x) = w\,a(x) + s \sum_j c_j B_j(u(x))` with the basis functions :math:`B_j`, the normalisation `u` and
    the activation `a` of the base branch. Zero padding comes before the functions. The arguments of the parent layer
    stay as they are; its ``weight`` is `w`, so a checkpoint of the ordinary layer loads into the base branch.

    Args:
        basis: config of a basis.
        normalization: ``'tanh'`` or ``'none'``, element-wise, or the config of a norm layer, e.g. ``dict(type='IN')``;
            None takes what the basis needs.
        base_act_cfg: `a`, a config for mmcv; None is the identity.
        with_base: whether there is the base branch.
        with_scaler: whether there are the factors `s`.
        init: ``'parent'`` begins with `w` as the parent layer's weight, s = 1 and `c` as the basis has it; an
            ``init_cfg`` around the layer sets `w` and the bias, as it does there. As their reference implementations
            have it, before any ``init_cfg``: ``'efficient_kan'`` with `w` and `s` uniform within 1 / sqrt(n), n being
            the inputs of a linear layer or the taps alone of a convolution (arXiv 2406.13155); ``'fast_kan'`` with `c`
            normal, of 0.1; ``'faster_kan'`` with `c` Xavier-uniform.
        memory: ``'fast'`` keeps the values of the functions for the backward pass, ``'low'`` only the input.
        device, dtype: as in the parent layer.

    Raises:
        ValueError: unknown basis, normalisation, ``init`` or ``memory``.
    """

    channel_dim: int
    normalization: Any  # a name in ELEMENTWISE, or the config of a norm layer

    def __init__(self,
                 *args,
                 basis: dict = dict(type='BSpline'),  # noqa: B006
                 normalization: str | dict | None = None,
                 base_act_cfg: dict | None = dict(type='SiLU'),  # noqa: B006
                 with_base: bool = True,
                 with_scaler: bool = False,
                 init: str = 'parent',
                 memory: str = 'fast',
                 device: torch.device | str | None = None,
                 dtype: torch.dtype | None = None,
                 **kwargs) -> None:
        where = {name: value for name, value in dict(device=device, dtype=dtype).items() if value is not None}
        super().__init__(*args, **where, **kwargs)
        name = type(self).__name__
        if memory not in ('fast', 'low'):
            raise ValueError(f"{name}: memory must be 'fast' or 'low', got {memory!r}")
        if init not in INITS:
            raise ValueError(f'{name}: no init {init!r}; there are {", ".join(INITS)}')
        self.memory, self.init = memory, init
        self.basis: Basis = placed_as(self.weight, build(BASES, basis, name))
        self.basis.spread(self.num_inputs)
        self.norm, self.normalization = None, normalization or self.basis.normalization
        if isinstance(self.normalization, dict):
            self.norm = placed_as(self.weight, build_norm_layer(self.normalization, self.num_inputs)[1])
            self._check_norm()
        elif self.normalization not in ELEMENTWISE:
            raise ValueError(f'{name}: no normalization {normalization!r}; there are {", ".join(ELEMENTWISE)}, or the '
                             "config of a norm layer, e.g. dict(type='GN', num_groups=1)")
        self.base_act = build_base_act(base_act_cfg)
        if self.base_act is not None:
            self.base_act = placed_as(self.weight, self.base_act)
        self._check_base_act()
        shape = self.weight.shape
        self.basis_weight = nn.Parameter(
            self.weight.new_empty(*shape[:2], self.basis.num_functions, *shape[2:]))
        self.scaler = nn.Parameter(torch.empty_like(self.weight)) if with_scaler else None
        if not with_base:
            self.weight = None
        self.origin = new_origin()
        self.reset_parameters()
        teach_parts()

    def _check_norm(self) -> None:
        """Raise ValueError where torch's norm layer would take another dimension for channels, without an error."""
        dims, norm = getattr(self, 'spatial', 0), self.norm
        if (type(norm) is nn.LayerNorm and dims) or (
                isinstance(norm, _InstanceNorm) and (not dims or norm._get_no_batch_dim() != dims + 1)):
            better = f"dict(type='IN{dims}d') or dict(type='GN', num_groups=1)" if dims else "dict(type='LN')"
            raise ValueError(f'{type(self).__name__}: the channels of its input are not in the dimension where the '
                             f'normalization, {type(norm).__name__}, has them; give {better}')

    def _check_base_act(self) -> None:
        """Raise ValueError where the activation of the base branch does not serve."""

    @property
    def num_inputs(self) -> int:
        """Number of input channels or features."""
        return self.in_channels if hasattr(self, 'in_channels') else self.in_features

    @property
    def fan_in(self) -> int:
        """Number of functions that are summed into one output."""
        shape = self.basis_weight.shape
        return max(1, shape[1] * shape[3:].numel())

    @property
    def without_constant(self) -> bool:
        """Whether a first function that is 1 everywhere goes into the bias instead of a plane."""
        return self.basis.constant_first

    def reset_parameters(self) -> None:
        """`w` and `s` as ``init`` says, the bias as in the parent layer, the basis as at first, `c` as it wants."""
        if self.weight is not None:
            super().reset_parameters()
        if not hasattr(self, 'basis_weight'):  # the parent's constructor is still at work
            return
        if self.weight is None and self.bias is not None:
            nn.init.zeros_(self.bias)
        self.basis.reset_parameters()
        self.basis.init_weight(self.basis_weight, self.fan_in)
        if self.init == 'efficient_kan':
            bound = (self.basis_weight[0, 0, 0].numel() if self.basis_weight.dim() > 3 else self.fan_in)**-0.5
            for weight in (self.weight, self.scaler):
                if weight is not None:
                    nn.init.uniform_(weight, -bound, bound)
        elif self.scaler is not None:
            nn.init.ones_(self.scaler)
        if self.init == 'fast_kan':
            nn.init.trunc_normal_(self.basis_weight, std=0.1)
        elif self.init == 'faster_kan':
            nn.init.xavier_uniform_(self.basis_weight.flatten(1))  # a view

    def init_weights(self) -> None:
        """Draws anew, but with ``'parent'`` where the model around has set `w` or the bias: what it says stays.

        mmcv's ConvModule leaves layers alone that have this method.
        """
        if self.init != 'parent' or not is_set(self):
            self.reset_parameters()

    # -- what it takes -----------------------------------------------------------------------------------------------
    def check_input(self, x: Tensor, *args) -> None:
        """Let the ordinary layer of this shape raise what it has against an input; what it takes passes.

        Raises:
            RuntimeError, TypeError: as from the ordinary layer: channels, dimensions, dtype, device, freed memory, no
                tensor.
        """
        weight = self._stored()
        self.__dict__.pop('_folded', None)  # weights that were set without a bias
        if not (isinstance(x, Tensor) and x.device == weight.device and x.layout is torch.strided
                and not x.is_nested and self._fits(x)
                and (x.dtype == weight.dtype
                     or (x.dtype in (torch.float32, *HALF) and autocast_dtype(x.device.type) is not None))):
            refuse_numbers_to_meta(weight, x, lambda x: self._ordinary()(x, *args))
            self._ordinary()(x, *args)
        refuse_freed(x)

    def _stored(self) -> Tensor:
        """The coefficients, or what a parametrization computes them of: it would do so at each look."""
        stored = self._parameters.get('basis_weight')
        if stored is None and nn.utils.parametrize.is_parametrized(self, 'basis_weight'):
            stored = next(getattr(self, 'parametrizations')['basis_weight'].parameters(), None)  # noqa: B009
        return self.basis_weight if stored is None else stored

    def of_dense(self, x: Tensor, *args: Any) -> Tensor:
        """Of an input in a layout without strides, which the ordinary layer takes: functions are not 0 where it is."""
        y = self.forward(x.to_dense(), *args)
        return y.to_mkldnn() if x.is_mkldnn else y

    def check_samples(self, x: Tensor) -> None:
        if not (isinstance(x, Tensor) and x.is_floating_point() and self._fits(x)):
            self._ordinary()(x)

    @abstractmethod
    def _fits(self, x: Tensor) -> bool:
        """Whether number of dimensions and of channels are the layer's. For a tracer they are."""

    def _ordinary(self) -> nn.Module:
        """The ordinary layer with this one's arguments, and zeros as weights."""
        parent = next(cls for cls in type(self).__mro__ if cls.__module__.startswith('torch.nn.modules'))
        layer = object.__new__(parent)
        nn.Module.__init__(layer)
        layer.__dict__ = {**self.__dict__, **layer.__dict__, 'training': self.training}
        shape = self.basis_weight.shape
        layer.weight = nn.Parameter(self.basis_weight.new_zeros(()).expand(*shape[:2], *shape[3:]))
        layer.bias = self.bias
        return layer

    # -- computing ---------------------------------------------------------------------------------------------------
    def coefficients(self) -> Tensor:
        """`s c` of the functions that are not pruned, (out, in, F, ...)."""
        weight = as_autocast(self.basis_weight)
        if self.scaler is not None:
            weight = weight * self.scaler.unsqueeze(2)
        return self.unpruned(weight, 2)

    def kernel(self, coefficients: Tensor) -> Tensor:
        """Weights of the planes, (out, in, P, ...)."""
        kernel, base = coefficients[:, :, 1:] if self.without_constant else coefficients, self.weight
        if base is None:
            return kernel
        return torch.cat([self.unpruned(as_autocast(base)).unsqueeze(2), kernel], 2)

    def normed(self, x: Tensor) -> Tensor | None:
        """What a norm layer before the functions makes of x. Not to be recomputed: its statistics would count twice."""
        return None if self.norm is None else self.norm(x)

    @property
    def compiled_base(self) -> str | None:
        """Name of the base branch in the compiled kernels; None where they do not have it, or somebody watches it."""
        act = self.base_act
        if self.weight is None:
            return 'none'
        return None if act is not None and is_watched(act) else COMPILED_ACTS.get(type(act))

    def recipe(self, x: Tensor) -> tuple[Callable[..., Tensor], Functions, str, bool] | None:
        """Arguments of the compiled `expand`, where it can do for ``x`` what `_planes` does."""
        base, basis = self.compiled_base, self.basis
        if (is_transformed() or base is None or self.norm is not None
                or self.without_constant != basis.constant_first):
            return None
        functions = basis.for_kernels()
        if functions is None or not can_expand(x, functions, x.shape[self.channel_dim]):
            return None
        return self._planes, functions, base, self.normalization == 'tanh'

    def fused(self, x: Tensor, tf32: bool, kernel: tuple[int, int] = (1, 1), stride: tuple[int, int] = (1, 1),
              padding: tuple[int, int] = (0, 0)) -> Tensor | None:
        """All of the layer in one kernel, (B, in, H, W) -> (B, out, H', W'); None where other forms are to be taken."""
        if not tf32 and x.dtype == torch.float32 and autocast_dtype('cuda') is None:
            return None  # there is no such kernel: nothing else needs to be asked
        base = self.compiled_base
        if is_transformed() or base is None or self.norm is not None:
            return None
        parameters = self.basis_weight, self.weight, self.scaler, self.mask, self.bias
        layer = base, self.normalization == 'tanh', self.basis.constant_first, kernel, stride, padding
        return fused_conv2d(x, parameters, self.basis.for_kernels(), layer, tf32)

    def _read(self, *inputs: Tensor | None) -> list[nn.Module | None]:
        """What has parameters on which the gradients of `_planes` depend; with inputs, those of the whole layer."""
        before = [self.basis, self.base_act]
        whole = bool(inputs) and (self.scaler is not None or any_needs_grad(*inputs, *before))
        return [*before, self if whole else None]

    def _planes(self, x: Tensor, normed: Tensor | None, dim: int, centre: bool) -> Tensor:
        """Values that the kernel multiplies, behind ``dim``: with dim=1 (B, C, H, W) -> (B, C, P, H, W).

        With ``centre`` the functions' values at 0 are subtracted, so that the planes are 0 where x is, and padded taps
        need nothing more.
        """
        u = ELEMENTWISE[self.normalization](x) if normed is None else normed
        values = self.basis(u.float() if u.dtype in HALF else u, dim)
        position = dim % x.dim() + 1
        if centre:
            zero = folded(self.basis.at_zero, values, constant=not self.training)
            values = values - zero.reshape(*zero.shape, *[1] * (values.dim() - position - 1))
        if self.without_constant:
            values = values.narrow(position, 1, values.size(position) - 1)
        values = as_type_of(values, x)
        if self.weight is None:
            return values
        base = x if self.base_act is None else self.base_act(x)
        return torch.cat([base.unsqueeze(position), values], position)

    def constant(self, coefficients: Tensor, zero: Tensor) -> Tensor:
        """What the functions give at 0, summed: (out,). ``zero`` is (rows, F)."""
        out, inputs, functions = coefficients.shape[:3]
        groups = getattr(self, 'groups', 1)
        taps = coefficients.shape[3:].numel()
        summed = coefficients.reshape(groups, out // groups, inputs, functions, taps).sum(-1)
        zero = zero.expand(groups * inputs, functions).reshape(groups, 1, inputs, functions)
        return (summed * zero).sum((2, 3)).reshape(out)
