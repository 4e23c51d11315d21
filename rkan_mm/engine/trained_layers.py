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
AVERAGES = 'kan_layers_that_average_others'


class TrainedLayers:
    """The layers with grids in the model of a run, from the beginning of its training on.

    What ``requires_grad`` and names say is not enough. A discriminator may be frozen where a step ends, and thawed in
    the next. A frozen layer that has the place of a trained one in another network may average it, as a mean teacher
    does, or stay as it is, as a net does from which others learn: an average is of a ``MeanTeacher`` hook, or begins
    as its layer, or changes. A copy that runs under ``no_grad`` first may be trained in the same step, so that what
    had gradients once is no average.

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
        self._learned_frozen: set[nn.Parameter] = set()  # in an iteration at whose beginning they were frozen
        self._seen: dict[nn.Module, tuple[int, Tensor]] = {}  # who may be some: since when, and a number of theirs
        self._apart: dict[nn.Module, nn.Module] = {}  # who were taken for none, by which their grids may be others
        hub = runner.message_hub
        if not runner.iter:  # the hub may be that of a run before
            hub.update_info_dict({CALLED_AGAIN: [], AVERAGES: []})
        self._averages: set[nn.Module] = {  # who are known to be some
            layers[name] for name in hub.get_info(AVERAGES, []) if name in layers}
        self._handles = [optimizer.register_step_pre_hook(self._see_step) for optimizer in optimizers(runner)]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self) -> None:
        """To be called before each iteration."""
        self._frozen = {parameter for parameter in self._parameters if not parameter.requires_grad}
        self._thawed &= self._frozen if self._begun < 2 else self._frozen & self._learned_frozen
        if not self._begun:
            self._seen = {}
            self.changed(each for copies in self._pairs().values() for each in copies)
        self._begun += 1
        for copy in [copy for copy in self._apart if self._has_changed(copy)]:  # an average that began otherwise
            layer = self._apart.pop(copy)
            if not same_grid(copy.basis, layer.basis):
                copy.follow_grid(layer)

    def _see_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        learned = {parameter for parameter in self._parameters if parameter.grad is not None}
        self._learned |= learned
        self._learned_frozen |= learned & self._frozen
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
        for source, copies in self._pairs(without_grad={layer}).items():
            if layer in copies:
                if self._is_average(layer, source):
                    return source
                self._apart[layer] = source
        return None

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
        if any('MeanTeacher' in each.__name__ for hook in self._runner.hooks for each in type(hook).__mro__):  # mmdet's
            self._averages.update(getattr(model, 'teacher', nn.Module()).modules())
        learning = [layer for layer in self._layers.values() if layer.coefficient_parameter in self._thawed]
        return followers(model, *averages, learning=learning, **options)

    def _is_average(self, copy: GridUpdate, layer: GridUpdate) -> bool:
        if copy in self._averages or copy.coefficient_parameter in self._learned:
            return copy in self._averages
        if copy.coefficient_parameter.shape == layer.coefficient_parameter.shape and (
                copy.coefficient_parameter.equal(layer.coefficient_parameter)):
            return True
        if self._has_changed(copy):
            return True
        since, now = self._seen[copy][0], self._runner.iter
        return since == now > 0 and same_grid(copy.basis, layer.basis)  # resumed just now, as averages share grids

    def _has_changed(self, copy: GridUpdate) -> bool:
        """Whether it has since it was seen first, though it is not trained; then it is an average from now on."""
        if copy in self._averages or copy.coefficient_parameter in self._learned:
            return copy in self._averages
        _, number = self._seen.setdefault(copy, (self._runner.iter, _number(copy)))
        if number.equal(_number(copy)):
            return False
        self._averages.add(copy)
        hub = self._runner.message_hub
        hub.update_info(AVERAGES, [name for name, layer in self._layers.items() if layer in self._averages])
        return True


def _number(layer: GridUpdate) -> Tensor:
    """Another one where the coefficients are others."""
    return layer.coefficient_parameter.detach().double().sum()
