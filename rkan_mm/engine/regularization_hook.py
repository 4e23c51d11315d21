"""Penalties on the functions of KAN layers in the training loss."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner
from torch import nn

from rkan_mm.models.layers import GridBasis
from rkan_mm.models.layers.curvature import curvature, input_range
from rkan_mm.models.layers.sparsity import Sparsity
from rkan_mm.models.layers.symbolic_trace import layer_input
from rkan_mm.registry import HOOKS

from .checkpoint_form import unwrap
from .layer_hooks import HereAlone, refuse_shards


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class KANRegularizationHook(Hook):
    """Add penalties on the functions of all KAN layers to the training loss; each is logged as ``loss_kan_<name>``.

    ``smoothness`` of a basis on a grid is that of its coefficients. Of one without (polynomials, Fourier, Rational) it
    is the mean squared second derivative over the range of the inputs of that very batch, see
    :func:`rkan_mm.models.layers.curvature`, for well-fitting functions oscillate.

    Args:
        l1, entropy, smoothness: factors of what :meth:`~rkan_mm.models.KANLayer.regularization` returns, summed over
            all layers that are not frozen. Zero leaves a penalty out.

    Raises:
        ValueError: all factors are zero; in ``before_train``: no KAN layer, or FSDP shards some as units of their own.
    """

    def __init__(self, l1: float = 0.0, entropy: float = 0.0, smoothness: float = 0.0) -> None:
        self.factors = {name: factor for name, factor in dict(l1=l1, entropy=entropy, smoothness=smoothness).items()
                        if factor}
        if not self.factors:
            raise ValueError('KANRegularizationHook: give a factor for l1, entropy or smoothness')
        self._handles, self._ranges = [], {}
        self._added = False

    def before_train(self, runner: Runner) -> None:
        self.after_train(runner)  # of a training that was broken off
        self._added = False
        model = unwrap(runner.model)
        refuse_shards(self, model.modules())  # the outermost unit is whole until the model's own hooks have run
        if not any(isinstance(module, Sparsity) for module in model.modules()):
            raise ValueError(f'KANRegularizationHook: {type(model).__name__} has no KAN layer')
        self._handles = [model.register_forward_hook(HereAlone(self._add))]
        if 'smoothness' in self.factors:
            self._handles.append(model.register_forward_pre_hook(
                HereAlone(lambda model, args: self._ranges.clear())))
            self._handles += [module.register_forward_pre_hook(HereAlone(self._measure), with_kwargs=True)
                              for module in model.modules()
                              if isinstance(module, Sparsity) and not isinstance(module.basis, GridBasis)]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if not self._added:
            runner.logger.warning(
                f'KANRegularizationHook adds nothing: in this step no dict of losses came out of the forward pass of '
                f'{type(unwrap(runner.model)).__name__}. Where a train_step calls parts of the model, let it add what '
                'regularization() of their layers gives')
        self._added = True  # said once

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._ranges = [], {}

    def _measure(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        """The range of this batch alone, so that a resumed run goes on as it would have."""
        if layer.training and layer.coefficient_parameter.requires_grad:
            ends = input_range(layer, layer_input(args, kwargs))
            if layer in self._ranges:  # a layer that is called again
                low, high = self._ranges[layer].unbind()
                ends = torch.stack([torch.minimum(low, ends[0]), torch.maximum(high, ends[1])])
            self._ranges[layer] = ends

    def _add(self, model: nn.Module, args: tuple, losses):
        """Inside of the model's forward pass, so that a wrapper such as DDP sees the use of the parameters."""
        if not (model.training and isinstance(losses, dict)):
            return losses
        penalties = [module.regularization() for module in model.modules()
                     if isinstance(module, Sparsity) and module.coefficient_parameter.requires_grad]
        penalties += [dict(smoothness=curvature(layer, ends)) for layer, ends in self._ranges.items()]
        added = {}
        for name, factor in self.factors.items():
            values = [penalty[name] for penalty in penalties if name in penalty]
            if not values:
                raise ValueError(f'KANRegularizationHook: no KAN layer of {type(model).__name__} has a {name!r} '
                                 'penalty; smoothness needs one that has run, with more than two functions on a '
                                 'grid')
            added[f'loss_kan_{name}'] = factor * sum(values)
        self._added = True
        return {**losses, **added}
