"""Which functions of a KAN layer matter: regularisation, importance and pruning."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rkan_mm.models.ops import as_type_of
from rkan_mm.teaching import teach

from .basis import GridBasis
from .basis.grid import lasting
from .grid_fit import MAX_SAMPLES, some
from .half import in_full, in_single
from .mixin import LayerMixin
from .symbolic_trace import layer_input


class NoSamplesError(ValueError):
    """All samples have inf or NaN, or there are none."""


class Sparsity(LayerMixin):
    """Mixin of KAN layers: each weight of the ordinary layer is a function, which may be penalised and pruned.

    The mask is part of the state_dict, but no buffer: moving averages pair buffers of two models by their order, and
    one of them may be pruned before the other.
    """

    mask: Tensor | None = None
    formulas = 0
    """For how many functions a formula stands: what is compiled sees no hook that comes later, but this."""

    @property
    def present_mask(self) -> Tensor | None:
        """The mask, for the forward pass: with another number of formulas it is compiled anew."""
        return self.mask if self.formulas >= 0 else None

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.mask is not None:
            destination[f'{prefix}mask'] = self.mask

    def _load_mask(self, state_dict: dict, prefix: str) -> None:
        """As the checkpoint has it: a layer is pruned, or no longer."""
        parameter = self.coefficient_parameter
        if f'{prefix}mask' in state_dict:
            self.mask = state_dict[f'{prefix}mask'].detach().to(parameter, copy=True)
        elif f'{prefix}{self.coefficients_name}' in state_dict and self.mask is not None:
            self.mask = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Sparsity:
        super()._apply(fn, recurse)
        if self.mask is not None:
            self.mask = fn(self.mask)
        return self

    @in_single
    def regularization(self) -> dict[str, Tensor]:
        r"""Penalties on the coefficients `s c` of the functions, with `m` the mean of `|s c|` over a function.

        ``l1`` is the sum of `m`; ``entropy`` that of :math:`-p \ln p` with `p = m / l1`, small where few functions do
        the work (efficient-kan's form of arXiv 2404.19756); ``smoothness``, on a grid, the sum over functions of the
        mean squared second difference of their coefficients.
        """
        coefficients = in_full(self.coefficients())
        strength = coefficients.abs().mean(2)
        l1 = strength.sum()
        p = strength / (l1 + 1e-12)
        penalties = dict(l1=l1, entropy=-(p * (p + 1e-12).log()).sum())
        if isinstance(self.basis, GridBasis) and self.basis.num_functions > 2:
            penalties['smoothness'] = coefficients.diff(n=2, dim=2).square().mean(2).sum()
        return penalties

    @lasting
    def importance(self, x: Tensor | None = None) -> Tensor:
        """Of each function, in the shape of the ordinary layer's weight.

        Its root mean square over the samples ``x`` of the layer's input, base branch included; without samples, the
        sum of the sizes of its coefficients. Samples with inf or NaN are left out.

        Raises:
            ValueError: all samples have inf or NaN, or there are none.
            RuntimeError, TypeError: they are no input of the layer, as from the ordinary layer.
        """
        coefficients = self.coefficients()
        if x is None:
            size = in_full(coefficients).abs().sum(2)
            if self.weight is None:
                return size
            base = in_full(self.weight).abs()
            return size + self.unpruned(base)
        self.check_samples(x)
        x, dim = self._batched(x), self.channel_dim
        if self.norm is None:  # all samples are alike
            x, dim = x.movedim(dim, -1).flatten(0, -2), -1  # (N, C)
            x = self._finite_ones(x, x.isfinite().all(1))
            x = some(x, MAX_SAMPLES)
        else:
            x = self._finite_ones(x, x.flatten(1).isfinite().all(1))
        values = in_full(self._planes(x, self.seen(x), dim, False))
        values = values.movedim((dim % x.dim(), dim % x.dim() + 1), (0, 1)).flatten(2)  # (C, P, N)
        kernel = self.kernel(coefficients).to(values)
        if self.without_constant:  # which has no plane
            values = torch.cat([torch.ones_like(values[:, :1]), values], 1)
            kernel = torch.cat([coefficients[:, :, :1].to(values), kernel], 2)
        largest = values.abs().amax(2, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        values = values / largest  # whose squares are numbers whatever the samples
        moment = (values @ values.mT / values.shape[2]).double()  # (C, P, P)
        weight = self.by_channel(kernel).double() * largest  # (C, P, M)
        square = (weight * (moment @ weight)).sum(1, keepdim=True)
        return self.from_channel(square.clamp(min=0).sqrt()).squeeze(2).to(kernel.dtype)

    def _finite_ones(self, x: Tensor, finite: Tensor) -> Tensor:
        if not finite.any():
            raise NoSamplesError(f'{type(self).__name__}.importance: not one of {len(x)} samples is without inf and '
                                 'NaN')
        return x[finite]

    @lasting
    def prune(self, amount: float | None = None, threshold: float | None = None, x: Tensor | None = None) -> float:
        """Switch off the functions of least importance; the mask is part of the state_dict.

        Args:
            amount: the part of all functions to be off, 0 to 1; or
            threshold: the importance below which a function is off.
            x: samples for :meth:`importance`.

        Returns:
            The sparsity reached.

        Raises:
            ValueError: not exactly one of ``amount`` and ``threshold``, or ``amount`` out of range.
        """
        if (amount is None) == (threshold is None):
            raise ValueError(f'{type(self).__name__}.prune: give either amount or threshold')
        importance = self.ranked(self.importance(x))
        keep = importance > cut([importance], amount) if amount is not None else importance >= threshold
        self.keep(keep)
        return self.sparsity

    @lasting
    def keep(self, functions: Tensor) -> None:
        """Switch off all functions but these, a bool of the shape of the ordinary layer's weight."""
        keep = functions if self.mask is None else functions & self.mask.bool()
        self.mask = keep.to(self.coefficient_parameter.dtype)

    def unpruned(self, weight: Tensor, dim: int | None = None) -> Tensor:
        """Of weights in the shape of the mask, or with one dimension more, ``dim``, what is not switched off.

        The mask comes to where they are: replicas of `nn.DataParallel` leave it on the first device, and so do traces.
        """
        mask = self.present_mask
        if mask is None:
            return weight
        mask = as_type_of(mask, weight)
        return weight * (mask if dim is None else mask.unsqueeze(dim))

    @property
    def sparsity(self) -> float:
        """The part of all functions that are pruned; those that a formula stands for are not."""
        if self.mask is None:
            return 0.0
        locked = getattr(self, 'locked', None)
        off = int((self.mask == 0).sum()) - (0 if locked is None else len(locked.places))
        return off / max(1, self.mask.numel())

    def ranked(self, importance: Tensor) -> Tensor:
        """The importance by which functions are pruned: what is locked to a formula is not to be."""
        locked = getattr(self, 'locked', None)
        return importance if locked is None else importance.index_put(
            tuple(locked.places.T), importance.new_tensor(math.inf))


def cut(importances: Sequence[Tensor], amount: float) -> float:
    """The importance up to which functions must go so that ``amount`` of all are off.

    Raises:
        ValueError: ``amount`` is not in 0 to 1.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f'the amount to prune must be in 0 to 1, got {amount}')
    values = torch.cat([importance.flatten() for importance in importances])
    count = round(amount * len(values))
    return values.sort().values[count - 1].item() if count else -1.0  # kthvalue of a GPU is not deterministic


@torch.no_grad()
def prune(model: nn.Module, amount: float, run: Callable[[], object] | None = None) -> float:
    """Prune the least important functions of all KAN layers of a model, compared with each other.

    Moving averages of a layer (mean teachers, momentum encoders) are pruned as the layer is, and do not count.

    Args:
        model: holds any number of KAN layers.
        amount: the part of all their functions to be off.
        run: runs the model on samples, by which importance is then measured, over all calls of each layer.

    Returns:
        The sparsity over all KAN layers.

    Raises:
        ValueError: no KAN layer, ``run`` does not reach all of them, or ``amount`` is not in 0 to 1.

    Example:
        >>> model = nn.Sequential(KANLinear(4, 8), KANLinear(8, 2))
        >>> prune(model, 0.5, lambda: model(torch.rand(64, 4)))
        0.5
    """
    from .copies import followers
    averages = followers(model)
    following = {copy for copies in averages.values() for copy in copies}
    layers = [module for module in model.modules() if isinstance(module, Sparsity) and module not in following]
    if not layers:
        raise ValueError(f'prune: {type(model).__name__} has no KAN layer')
    importances = {}
    if run is None:
        importances = {layer: layer.ranked(layer.importance()) for layer in layers}
    else:
        squares: dict[nn.Module, Tensor] = {}
        sizes: dict[nn.Module, int] = {}

        def measure(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            x = layer_input(args, kwargs)
            try:
                square = layer.importance(x).double().square() * x.numel()
            except NoSamplesError:  # of a picture without proposals, or that overflows in half precision
                return
            squares[layer] = squares[layer] + square if layer in squares else square
            sizes[layer] = sizes.get(layer, 0) + x.numel()

        handles = [layer.register_forward_pre_hook(measure, with_kwargs=True) for layer in layers]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        importances = {layer: layer.ranked((square / sizes[layer]).sqrt()) for layer, square in squares.items()}
        if missed := [name for name, module in model.named_modules()
                      if module in layers and module not in importances]:
            raise ValueError(f'prune: run() reached {len(importances)} of {len(layers)} KAN layers of '
                             f'{type(model).__name__}, not {", ".join(missed[:5])}; let it call the model on samples, '
                             'e.g. lambda: model(images), or leave it out to go by the coefficients')
    limit = cut(list(importances.values()), amount)
    for layer, importance in importances.items():
        for each in (layer, *averages.get(layer, ())):
            each.keep((importance > limit).to(each.coefficient_parameter.device))
    total = sum(importance.numel() for importance in importances.values())
    return sum(layer.sparsity * importance.numel() for layer, importance in importances.items()) / total


def teach_stacking() -> None:
    """Have torch's ``stack_module_state`` stack masks, too: layers that are pruned otherwise would all have one."""
    for module in ('torch._functorch.functional_call', 'torch.func'):
        teach(importlib.import_module(module), 'stack_module_state', _stacked)


def _stacked(plain: Callable, models: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters, buffers = plain(models)
    for name, layer in models[0].named_modules():
        masks = [model.get_submodule(name).mask for model in models] if isinstance(layer, Sparsity) else []
        if any(mask is not None for mask in masks):
            like = next(mask for mask in masks if mask is not None)
            buffers[f'{name}.mask'.lstrip('.')] = torch.stack([torch.ones_like(like) if mask is None else mask
                                                              for mask in masks])
    return parameters, buffers
