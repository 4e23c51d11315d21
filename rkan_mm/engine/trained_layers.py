"""Which KAN layers of a run are trained, and which average these, by what becomes of them while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import broadcast_object_list
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from rkan_mm.models.layers.copies import followers
from rkan_mm.models.layers.grid_update import GridUpdate
from rkan_mm.models.layers.tied import same_grid

from .checkpoint_form import optimizers, unwrap

CALLED_AGAIN = 'kan_layers_called_again'


class TrainedLayers:
    """The layers with grids in the model of a run, from the beginning of its training on.

    What ``requires_grad`` and names say is not enough. A discriminator may be frozen where a step ends, and thawed in
    the next. A frozen layer that has the place of a trained one in another network may average it, as a mean teacher
    does, or stay as it is, as a net does from which others learn: an average begins as its layer, or changes. A copy
    that runs under ``no_grad`` first may be trained in the same step.

    Args:
        runner: whose optimizers are watched until `close`.
        layers: by name.

    Raises:
        ValueError: an optimizer keeps all parameters in buffers of its own.
    """

    def __init__(self, runner: Runner, layers: dict[str, GridUpdate]) -> None:
        if any(getattr(each, 'parameters_as_bucket_view', False) for each in optimizers(runner)):
            raise ValueError('KANGridUpdateHook: with parameters_as_bucket_view=True the optimizer sends buffers of '
                             'its own to other processes, and not the coefficients of another grid. Give False')
        self._runner, self._layers = runner, layers
        self._begun = 0  # iterations
        self._parameters = [*unwrap(runner.model).parameters()]
        self._frozen: set[nn.Parameter] = set()  # when this iteration began
        self._learned: set[nn.Parameter] = set()  # had gradients in some step
        self._thawed: set[nn.Parameter] = set()  # of these, which are trained in parts of a step alone
        self._averages: set[nn.Module] = set()  # who are known to be some
        self._seen: dict[nn.Module, tuple[int, Tensor]] = {}  # who may be some: since when, and a number of theirs
        self._apart: dict[nn.Module, nn.Module] = {}  # who were taken for none in this iteration
        if not runner.iter:  # the hub may be that of a run before
            runner.message_hub.update_info(CALLED_AGAIN, [])
        self._handles = [optimizer.register_step_pre_hook(self._see_step) for optimizer in optimizers(runner)]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self) -> None:
        """To be called before each iteration."""
        self._frozen = {parameter for parameter in self._parameters if not parameter.requires_grad}
        self._thawed &= self._frozen
        if not self._begun:
            self._seen = {}
            self.changed(each for copies in self._pairs().values() for each in copies)
        self._begun += 1
        for copy, layer in self._apart.items():  # an average that did not begin as its layer
            if self._is_average(copy, layer) and not same_grid(copy.basis, layer.basis):
                copy.follow_grid(layer)
        self._apart = {}

    def _see_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        learned = {parameter for parameter in self._parameters if parameter.grad is not None}
        self._learned |= learned
        self._thawed |= learned if self._begun == 1 else learned & self._frozen

    @contextmanager
    def thawed(self) -> Iterator[None]:
        """Meanwhile all that is trained in parts of a step alone needs gradients, as it did when the run began."""
        frozen = [parameter for parameter in self._thawed if not parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def trained(self) -> dict[str, tuple[GridUpdate, list[GridUpdate]]]:
        """Those that are trained by name, each with its moving averages."""
        found, pairs = {}, self._pairs()
        for name, layer in self._layers.items():
            if layer in pairs:
                averages = [copy for copy in pairs[layer] if self._is_average(copy, layer)]
                self._apart |= {copy: layer for copy in pairs[layer] if copy not in averages}
                found[name] = layer, averages
        return found

    def source(self, layer: GridUpdate) -> GridUpdate | None:
        """Which layer this one averages, should it run without gradients (as checkpointed ones do, too)."""
        pairs = self._pairs(without_grad={layer})
        return next((source for source, copies in pairs.items()
                     if layer in copies and self._is_average(layer, source)), None)

    def changed(self, layers: Iterable[nn.Module]) -> None:
        """To be told of layers that were given other coefficients, with a grid."""
        self._seen |= {layer: (self._runner.iter, _number(layer)) for layer in layers}

    def add_call(self, name: str) -> None:
        """Note that a layer was called once more in a step. A checkpoint has it, too."""
        hub = self._runner.message_hub
        hub.update_info(CALLED_AGAIN, sorted({name, *hub.get_info(CALLED_AGAIN, [])}))

    def called_again(self) -> list[str]:
        """The layers of which this is known, as the first process knows it."""
        told = [self._runner.message_hub.get_info(CALLED_AGAIN, [])]
        broadcast_object_list(told)
        return told[0]

    def _pairs(self, **options: Any) -> dict[nn.Module, list[nn.Module]]:
        model = unwrap(self._runner.model)
        averages = [unwrap(hook.ema_model.module) for hook in self._runner.hooks if isinstance(hook, EMAHook)]
        for average in (*averages, *(each for each in model.modules() if isinstance(each, BaseAveragedModel))):
            self._averages.update(average.modules())
        learning = [layer for layer in self._layers.values() if layer.coefficient_parameter in self._thawed]
        return followers(model, *averages, learning=learning, **options)

    def _is_average(self, copy: GridUpdate, layer: GridUpdate) -> bool:
        if copy in self._averages or copy.coefficient_parameter in self._learned:
            return copy in self._averages
        if copy.coefficient_parameter.shape == layer.coefficient_parameter.shape and (
                copy.coefficient_parameter.equal(layer.coefficient_parameter)):
            return True
        now = self._runner.iter
        since, number = self._seen.setdefault(copy, (now, _number(copy)))
        if not number.equal(_number(copy)):
            self._averages.add(copy)
            return True
        return since == now > 0 and same_grid(copy.basis, layer.basis)  # resumed just now, as averages share grids


def _number(layer: GridUpdate) -> Tensor:
    """Another one where the coefficients are others."""
    return layer.coefficient_parameter.detach().double().sum()
