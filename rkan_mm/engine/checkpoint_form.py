"""Checkpoints whose KAN layers have other parameters than the model's: finer grids, formulas in the place of functions.

mmengine loads them, and those of an ``init_cfg``, when the optimizer, the wrapper for several processes and the
averages are made, which know the parameters from before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.optim import BaseOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import SGD, Optimizer

from rkan_mm.models.layers.copies import followers
from rkan_mm.models.layers.grid_update import GridUpdate
from rkan_mm.registry import HOOKS

from .wrapping import wrap_again


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def _shapes(model: nn.Module) -> dict[nn.Parameter, torch.Size]:
    return {parameter: parameter.shape for parameter in model.parameters()}


def show_averages(runner: Runner) -> None:
    """Averages hold a dict of their tensors, which may have been others, or of other shapes."""
    averages = (getattr(hook, 'ema_model', None) for hook in runner.hooks if isinstance(hook, EMAHook))
    for model in (unwrap(runner.model), *averages):
        for average in model.modules() if model is not None else ():
            if isinstance(average, BaseAveragedModel):
                average.avg_parameters = (average.module.state_dict() if average.update_buffers
                                          else dict(average.module.named_parameters()))


def follow_parameters(runner: Runner) -> None:
    """Let averages and the wrapper of ``runner.model`` take parameters that have changed in number or shape."""
    show_averages(runner)
    if is_model_wrapper(runner.model):
        wrap_again(runner, runner.model.module)


def forget_in(runner: Runner, parameters: Iterable[nn.Parameter]) -> None:
    """`forget` in each of a runner's optimizers."""
    for optimizer in optimizers(runner):
        forget(optimizer, parameters)


def optimizers(runner: Runner) -> list[Optimizer]:
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else (wrapper,)
    return [each.optimizer for each in wrappers if isinstance(each, BaseOptimWrapper)]


def forget(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop what an optimizer holds for parameters whose numbers are others now, perhaps in another shape.

    The fused form of SGD has momenta of all parameters or of none; there, these are zero again.
    """
    optimizer = getattr(optimizer, 'optim', optimizer)  # a ZeroRedundancyOptimizer has one of this process
    is_fused = isinstance(optimizer, SGD) and optimizer.defaults.get('fused')
    for parameter in parameters:
        held = optimizer.state.pop(parameter, {})
        if is_fused and held.get('momentum_buffer') is not None:
            optimizer.state[parameter] = dict(momentum_buffer=torch.zeros_like(parameter))


def take_form(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Give the model the parameters that a checkpoint will bring, before it is loaded, and all who know them, too.

    Nothing is done for a model without KAN layers, one that FSDP shards, and a checkpoint of the same form.

    Args:
        checkpoint: as ``after_load_checkpoint`` of a hook gets it.
    """
    model = unwrap(runner.model)
    if is_sharded(runner.model) or not any(isinstance(module, GridUpdate) for module in model.modules()):
        return
    before = _shapes(model)
    state_dict = checkpoint.get('state_dict', checkpoint)
    load_state_dict(model, {name.removeprefix('module.'): value for name, value in state_dict.items()}, False, 'silent')
    if before == _shapes(model):
        return
    wrapper = getattr(runner, 'optim_wrapper', None)
    named: dict[str | None, Any] = dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {None: wrapper}
    for name, each in named.items():
        if isinstance(each, OptimWrapper):
            saved = checkpoint.get('optimizer') if getattr(runner, '_resume', False) else None
            saved = (saved or {}).get(name) if name is not None else saved
            _add_constants(each.optimizer, model, len((saved or {}).get('param_groups', ())))
            forget(each.optimizer, [parameter for parameter, shape in before.items() if parameter.shape != shape])
    follow_parameters(runner)


def _add_constants(optimizer: Optimizer, model: nn.Module, groups: int) -> None:
    """Let an optimizer train the constants of formulas as the functions of their layer, in the order of the model.

    Args:
        optimizer: of the layers, or of others.
        groups: of parameters that the state has which it is about to load, 0 for none; constants get groups of their
            own if it has more.
    """
    places = {id(parameter): i for i, parameter in enumerate(model.parameters())}
    own = groups > len(optimizer.param_groups)
    for layer in [module for module in model.modules() if getattr(module, 'locked', None) is not None]:
        known = {id(p): group for group in optimizer.param_groups for p in group['params']}
        constants, group = layer.locked.constants, known.get(id(layer.coefficient_parameter))
        if group is None or id(constants) in known:
            continue
        place = places[id(constants)]
        if own:
            earlier = [i for i, each in enumerate(optimizer.param_groups)
                       if any(places.get(id(p), place) < place for p in each['params'])]
            optimizer.param_groups.insert(earlier[-1] + 1 if earlier else 0, {**group, 'params': [constants]})
        else:
            earlier = [i for i, p in enumerate(group['params']) if places.get(id(p), place) < place]
            group['params'].insert(earlier[-1] + 1 if earlier else 0, constants)


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class CheckpointFormHook(Hook):
    """Let a run begin or go on with a checkpoint whose KAN layers have other grids, or formulas, than the model's.

    The model takes their form before the checkpoint is loaded; constants of formulas join the optimizer, the wrapper
    for several processes is made anew (ranks would drift apart), and averages take the new tensors. So it is with finer
    grids in the weights of an ``init_cfg``; formulas in these mmengine refuses.
    `rkan_mm.apis.runner.train` and the ``KANGridUpdateHook`` do so by themselves; FSDP is left alone.
    """

    priority = 'LOWEST'  # after EMAHook, which loads its own

    def __init__(self) -> None:
        self._shapes: dict[nn.Parameter, torch.Size] = {}

    def before_run(self, runner: Runner) -> None:
        """Before the weights of the ``init_cfg`` are loaded."""
        self._shapes = {} if is_sharded(runner.model) else _shapes(runner.model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._follow_init(runner)
        take_form(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        self._follow_init(runner)
        for average, layer in () if is_sharded(runner.model) else _averaged(runner):
            if average.coefficient_parameter.shape != layer.coefficient_parameter.shape:
                average.load_state_dict(layer.state_dict())
        show_averages(runner)

    def _follow_init(self, runner: Runner) -> None:
        changed = [parameter for parameter, shape in self._shapes.items() if parameter.shape != shape]
        self._shapes = {}
        if changed:
            forget_in(runner, changed)
            follow_parameters(runner)


def _averaged(runner: Runner) -> Iterator[tuple[GridUpdate, GridUpdate]]:
    """KAN layers of averages, each with the layer that it averages."""
    model = unwrap(runner.model)
    for source, copies in followers(model).items():
        yield from ((each, source) for each in copies)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and hook.ema_model is not None:
            named = dict(unwrap(hook.ema_model.module).named_modules())
            yield from ((average, layer) for name, layer in model.named_modules() if isinstance(layer, GridUpdate)
                        and isinstance(average := named.get(name), GridUpdate))
