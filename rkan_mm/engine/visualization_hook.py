"""A hook that shows, while a model trains, what its KAN layers learn."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from rkan_mm.models.layers import GroupedKANConv2d
from rkan_mm.registry import HOOKS
from rkan_mm.spread import spread

from .checkpoint_form import unwrap
from .layer_hooks import Uncompiled

if TYPE_CHECKING:
    from rkan_mm.inspection import Recorder, Statistics
    from rkan_mm.inspection.branch import Branch


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class KANVisualizationHook(Hook):
    """Draw the functions of KAN layers over their inputs every few epochs, and log how large and how straight they are.

    It looks at one training batch, the last of an epoch that is due. Pictures (``kan-<layer>``) and scalars go where
    the config's visualizer sends them: the work dir, TensorBoard, WandB. Scalars are ``kan/<layer>/not_straight`` (part
    of the variance that straight lines leave), ``kan/<layer>/rms`` (root mean square over all functions),
    ``kan/<layer>/beyond`` (part of the inputs beyond the grid, or where tanh is above 0.99 in size) and
    ``kan/<stage>/branch`` (size of a RKAN block's branch beside its stage). The training is not changed by it; a
    compiled model runs uncompiled in that iteration.

    Args:
        interval: epochs, or iterations, from one look to the next.
        by_epoch: whether it counts epochs.
        num_functions: functions drawn of a layer with a function for each weight, those with the largest coefficients.
        num_layers: layers that are drawn, evenly spread where there are more; scalars are of all. The kernels of groups
            of channels are drawn as layers each, and have their scalars together.

    Raises:
        ValueError: a number is below 1; in ``before_train``: no KAN layer, epochs to count where the loop has none, or
            the model is sharded by FSDP.

    Example:
        >>> custom_hooks = [dict(type='KANVisualizationHook', interval=2)]
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1, by_epoch: bool = True, num_functions: int = 9, num_layers: int = 8) -> None:
        for name, value in dict(interval=interval, num_functions=num_functions, num_layers=num_layers).items():
            if value < 1:
                raise ValueError(f'KANVisualizationHook: {name} must be at least 1, got {value}')
        self.interval, self.by_epoch = interval, by_epoch
        self.num_functions, self.num_layers = num_functions, num_layers
        self._look: ExitStack | None = None
        self._recorder: Recorder | None = None
        self._branches: dict[str, Branch] = {}
        self._chosen: dict[str, list[tuple[int, ...]]] = {}

    def before_train(self, runner: Runner) -> None:
        from rkan_mm.inspection import kan_layers
        if any(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()):
            raise ValueError('KANVisualizationHook: it needs whole weights, and FSDP shards them')
        if not kan_layers(runner.model):
            raise ValueError(f'KANVisualizationHook: {type(runner.model).__name__} has no KAN layer')
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(f'KANVisualizationHook: by_epoch=True, and a {type(runner.train_loop).__name__} has no '
                             'epochs; give by_epoch=False, and interval in iterations')

    def _due(self, runner: Runner, batch_idx: int) -> bool:
        if not self.by_epoch:
            return self.every_n_train_iters(runner, self.interval)
        last = self.end_of_epoch(runner.train_dataloader, batch_idx)
        return last and self.every_n_epochs(runner, self.interval)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        from rkan_mm.inspection import BranchRecorder, Recorder
        if not self._due(runner, batch_idx):
            return
        if self._look is not None:  # of a step that was broken off
            self._look.close()
        self._look, self._recorder = ExitStack(), None
        self._look.callback(Uncompiled(runner.model).give_back)  # in all processes: compiled steps round otherwise
        if not is_main_process():
            return
        self._chosen = self._choose(runner.model)
        self._recorder = self._look.enter_context(Recorder(runner.model, keep=self._chosen))
        self._branches = self._look.enter_context(BranchRecorder(runner.model, num_maps=0)).branches

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if self._look is None:
            return
        self._look.close()
        self._look = None
        if self._recorder is None:
            return
        step, scalars = runner.iter + 1, {}
        ran = {name: own for name, own in self._recorder.statistics.items() if own.calls}
        for name, owns in self._layers(runner.model, ran).items():
            scalars |= {f'kan/{name}/{key}': value for key, value in _together(owns).items() if np.isfinite(value)}
        scalars |= {f'kan/{name}/branch': branch.size for name, branch in self._branches.items() if branch.calls}
        self._recorder = None
        runner.visualizer.add_scalars(scalars, step=step)
        runner.logger.info('KAN functions: ' + ', '.join(f'{name[4:]} {value:.3g}' for name, value in scalars.items()))
        self._draw(runner, ran, step)

    @staticmethod
    def _layers(model: nn.Module, ran: dict[str, Statistics]) -> dict[str, list[Statistics]]:
        """The layers by name, kernels of groups of channels together."""
        groups = {name for name, module in unwrap(model).named_modules() if isinstance(module, GroupedKANConv2d)}
        found: dict[str, list[Statistics]] = {}
        for name, own in ran.items():
            group = name.rpartition('.')[0]
            found.setdefault(group if group in groups else name, []).append(own)
        return found

    def _draw(self, runner: Runner, ran: dict, step: int) -> None:
        from rkan_mm.visualization import draw_functions, rendered
        names = list(ran)
        for i in spread(len(names), self.num_layers):
            name, own = names[i], ran[names[i]]
            chosen = None if own.functions.shared else self._chosen[name]
            figure = draw_functions(own.functions.layer, own, chosen, f'{name}, iteration {step}')
            runner.visualizer.add_image(f'kan-{name}', rendered(figure), step=step)

    def _choose(self, model: nn.Module) -> dict[str, list[tuple[int, ...]]]:
        """Functions that are drawn, by layer."""
        from rkan_mm.inspection import LayerFunctions, kan_layers
        found = {}
        for name, layer in kan_layers(model).items():
            importance = layer.importance()
            number = importance.numel() if LayerFunctions(layer).shared else self.num_functions
            best = importance.flatten().topk(min(number, importance.numel())).indices.sort().values.cpu()
            places = torch.unravel_index(best, importance.shape)
            found[name] = list(zip(*(axis.tolist() for axis in places), strict=True))
        return found


def _together(owns: list[Statistics]) -> dict[str, float]:
    """The scalars of the functions of one layer, which may have several kernels."""
    left, variance = map(sum, zip(*(own.variances() for own in owns), strict=True))
    square = torch.cat([own.rms().flatten().square() for own in owns]).mean().item()
    beyond = [own.overflow for own in owns if own.overflow is not None]
    return dict(not_straight=left / variance if variance > 0 else np.nan, rms=square**0.5,
                beyond=np.mean(beyond).item() if beyond else np.nan)
