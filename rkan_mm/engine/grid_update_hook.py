"""Grids that follow the data while a model trains."""

from __future__ import annotations

import inspect
import operator
from functools import partial

import torch
from mmengine.dist import broadcast, broadcast_object_list, get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from rkan_mm.models.layers import GridBasis
from rkan_mm.models.layers.grid_fit import Drawn
from rkan_mm.models.layers.grid_update import GridUpdate
from rkan_mm.models.layers.symbolic_trace import layer_input
from rkan_mm.models.layers.tied import tied_to
from rkan_mm.registry import HOOKS

from .checkpoint_form import CheckpointFormHook, follow_parameters, forget_in, show_averages, unwrap
from .layer_hooks import HereAlone, Uncompiled, is_backward, pace, refuse_shards
from .trained_layers import TrainedLayers


def _grid_sizes(refine: dict) -> dict[int, int]:
    """By iteration, which is a text where it comes from ``--cfg-options`` or a config in JSON."""
    try:
        sizes = {int(iteration): operator.index(size) for iteration, size in refine.items()}
        whole = all(isinstance(each, str) or each == int(each) for each in refine)
    except (AttributeError, OverflowError, TypeError, ValueError):
        whole = False
    if not whole:
        sizes = {-1: 0}
    if any(iteration < 0 or size < 1 for iteration, size in sizes.items()):
        raise ValueError('KANGridUpdateHook: refine must be grid sizes by iteration (not epoch), such as {5000: 10}, '
                         f'got {refine!r}')
    return sizes


@HOOKS.register_module()
@MMENGINE_HOOKS.register_module()
class KANGridUpdateHook(Hook):
    """Lay the grids of all KAN layers over the data they see, at fixed iterations; refine them at others.

    In a training iteration that is due, each layer with a grid is updated with its input just before its forward pass,
    from the first layer to the last, each seeing what the updated ones before it give. What the optimizer holds for the
    coefficients and a trained grid is dropped. Where gradients are accumulated, what is due waits for the next step. A
    compiled model runs uncompiled in such an iteration. Across processes, rank 0 decides with its samples and the
    others follow; where they may run different layers (``find_unused_parameters=True``), not before a layer's forward
    pass, but after the step, up to which rank 0 keeps a part of each layer's input. So it is from the second update on
    with layers that are called several times in a step, as a head over several maps: over all that they were given, by
    layers before them on old grids. In nets that are called twice (BYOL, SimSiam) that is the whole backbone.
    Frozen layers stay as they are, but moving averages (of an ``EMAHook``, a mean teacher, a momentum encoder) share
    the grids of the layers that they average; so do copies of a layer that run under ``no_grad`` and are not trained.
    What is frozen in parts of a step alone, as a discriminator, counts as trained. Of layers with tied coefficients
    the first that runs has its grid laid over its input, and the others share it.

    Args:
        interval: iterations from one update to the next.
        begin: first iteration with an update, counted from 0.
        end: no update from this iteration on.
        refine: grid sizes by the iteration before which they take effect, e.g. ``{5000: 10}``. Text is taken for a
            number, as ``--cfg-options custom_hooks.0.refine.5000=10`` gives it.
        update: further arguments of :meth:`~rkan_mm.models.KANLayer.update_grid`; ``grow`` only without several
            processes, since ranks would differ in shape.

    Raises:
        TypeError: an argument that neither has; in ``before_train``: coefficients that are computed from others.
        ValueError: wrong numbers; in ``before_train``: no layer with a grid, one that cannot be as small as ``refine``
            says, all of them frozen, or sharded by FSDP.
    """

    priority = 'NORMAL'
    _found: TrainedLayers  # since the training began

    def __init__(self, interval: int = 100, begin: int = 0, end: int = 1000, refine: dict[int, int] | None = None,
                 **update) -> None:
        known = [name for name in inspect.signature(GridUpdate.update_grid).parameters
                 if name not in ('self', 'x', 'followers')]
        if unknown := [name for name in update if name not in known]:
            raise TypeError(f'KANGridUpdateHook: no argument {", ".join(unknown)}; there are interval, begin, end, '
                            f'refine, {", ".join(known)}')
        if interval < 1 or begin < 0 or end <= begin or interval % 1 or begin % 1:
            raise ValueError('KANGridUpdateHook: interval must be at least 1 and 0 <= begin < end, in whole iterations '
                             f'(not epochs), got interval={interval}, begin={begin}, end={end}')
        self.interval, self.begin, self.end = interval, begin, end
        self.refine = _grid_sizes(refine or {})
        self.update = dict(outside=0.01) | update
        self._handles, self._done, self._sources, self._without_grad, self._ran = [], {}, {}, set(), set()
        self._updates = self._moved = 0
        self._looked = -1
        self._kept: dict[str, list[Drawn] | None] | None = None
        self._kept_of: tuple[dict, dict] = {}, {}
        self._uncompiled: Uncompiled | None = None
        self._form = CheckpointFormHook()

    @staticmethod
    def layers(model: nn.Module) -> dict[str, GridUpdate]:
        return {name: module for name, module in unwrap(model).named_modules()
                if isinstance(module, GridUpdate) and isinstance(module.basis, GridBasis)}

    def before_run(self, runner: Runner) -> None:
        if self._sees_to_form(runner):
            self._form.before_run(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self._sees_to_form(runner):
            self._form.after_load_checkpoint(runner, checkpoint)

    @staticmethod
    def _sees_to_form(runner: Runner) -> bool:
        return not any(isinstance(hook, CheckpointFormHook) for hook in runner.hooks)

    def before_train(self, runner: Runner) -> None:
        self._stop()
        self._looked, self._kept = -1, None
        self._form.before_train(runner)
        refuse_shards(self, runner.model.modules())
        if not self.layers(runner.model):
            bases = {type(module.basis).__name__ for module in runner.model.modules() if isinstance(module, GridUpdate)}
            raise ValueError(f'KANGridUpdateHook: {type(unwrap(runner.model)).__name__} has no KAN layer with a basis '
                             f'on a grid, such as BSpline; ' + (f'its bases are {", ".join(sorted(bases))}' if bases
                                                                else 'it has no KAN layer at all'))
        if hasattr(self, '_found'):
            self._found.close()  # of a training that was broken off
        self._found = TrainedLayers(runner, self.layers(runner.model))
        trained = self._found.trained()
        if not trained:
            raise ValueError(f'KANGridUpdateHook: all KAN layers of {type(unwrap(runner.model)).__name__} are frozen; '
                             'their grids stay as they are')
        for name, (layer, _) in trained.items():
            if layer.coefficients_name not in layer._parameters:
                raise TypeError(f'KANGridUpdateHook: the {layer.coefficients_name} of {name} are computed from others, '
                                'by a parametrization or pruning of torch.nn.utils, and cannot be fitted to another '
                                'grid. Remove that, or this hook')
            if self.refine and min(self.refine.values()) < layer.basis.least:
                raise ValueError(f'KANGridUpdateHook: refine={self.refine}, but a grid of {type(layer.basis).__name__} '
                                 f'({name}) needs at least {layer.basis.least}')
        self._tell_what_comes_too_late(runner)
        if is_distributed() and self.update.get('grow'):
            raise ValueError('KANGridUpdateHook: grow changes the shape of coefficients by what a rank sees; with '
                             'several processes use grow=False')

    def _tell_what_comes_too_late(self, runner: Runner) -> None:
        last = getattr(runner.train_loop, 'max_iters', None)
        all_of_them = [('begin', self.begin), *(('refine at', iteration) for iteration in self.refine)]
        late = [f'{name} {when}' for name, when in all_of_them if last is not None and when >= last]
        if late:
            runner.logger.warning(f'KANGridUpdateHook: {", ".join(late)} comes to nothing, as training ends after '
                                  f'{last} iterations, by which all its numbers are counted')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._stop()
        self._found.begin()
        due = self._due(runner)
        for each in due:
            if each in self.refine:
                self._refine(runner, self.refine[each])
        if any(self.begin <= each < self.end and (each - self.begin) % self.interval == 0 for each in due):
            self._uncompiled = Uncompiled(runner.model)
            trained = self._found.trained()
            self._sources = {layer: self._found.source(layer) for layer, _ in trained.values()}
            late = self._late(runner, trained)
            if late:
                self._kept, self._kept_of = {}, (trained, self._sources)
            self._handles = [layer.register_forward_pre_hook(HereAlone(partial(
                self._keep if name in late else self._update, runner, name, copies)), with_kwargs=True)
                             for name, (layer, copies) in trained.items()]
            self._updates += 1

    def _late(self, runner: Runner, trained: dict[str, tuple]) -> set[str]:
        """Who has its grid laid after the step, with its copies: all, where processes may run different layers."""
        if is_distributed() and any(getattr(each, 'find_unused_parameters', False) for each in runner.model.modules()):
            return {*trained}
        layers = {trained[name][0] for name in self._found.called_again() if name in trained}
        layers |= {self._sources[layer] for layer in layers} - {None}  # of averages that are called again
        return {name for name, (layer, _) in trained.items() if layer in layers or self._sources[layer] in layers}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        self._stop()
        if self._kept is not None and pace(runner)[1]:
            with self._found.thawed():
                self._update_kept(runner, self._kept)
            self._kept = None

    def _due(self, runner: Runner) -> range:
        """The iterations whose changes are made now: those since the last step, where gradients are accumulated.

        None before the next step, as a change would drop what was accumulated.
        """
        counts, has_stepped = pace(runner)
        if not has_stepped:
            return range(0)
        first = max(runner.iter - counts, self._looked) + 1
        self._looked = runner.iter
        return range(first, runner.iter + 1)

    def _stop(self) -> None:
        """Also of a step that was broken off, after which somebody trains again."""
        if self._uncompiled:
            self._uncompiled.give_back()
        for handle in self._handles:
            handle.remove()
        self._handles, self._done, self._sources, self._without_grad, self._ran = [], {}, {}, set(), set()
        self._uncompiled = None

    def _update(self, runner: Runner, name: str, copies: list[GridUpdate], layer: GridUpdate, args: tuple,
                kwargs: dict) -> None:
        if not unwrap(runner.model).training:  # after a break
            return
        if layer in self._ran and not (is_backward() or tied_to(layer)):
            self._found.add_call(name)
        self._ran.add(layer)
        if layer in self._done:
            return
        source = None if torch.is_grad_enabled() else self._sources[layer]
        self._done[layer] = False
        if source is not None:  # it shares what the other has now, or will have
            self._without_grad.add(layer)
            if self._done.get(source):
                layer.follow_grid(source)
                self._found.changed([layer])
                self._forget(runner, layer)
            return
        copies = [*copies, *(each for each in self._without_grad if self._sources[each] is layer)]
        self._lay(runner, name, copies, layer, layer_input(args, kwargs))

    def _keep(self, runner: Runner, name: str, copies: list[GridUpdate], layer: GridUpdate, args: tuple,
              kwargs: dict) -> None:
        """In the place of `_update` for what is laid after the step; also where processes must not wait for others."""
        if self._kept is None or is_backward() or not unwrap(runner.model).training:
            return
        is_average = not torch.is_grad_enabled() and self._sources[layer] is not None
        inputs = self._kept.setdefault(name, None if is_average else [])
        if inputs is not None and not get_rank():
            inputs.append(layer.draw(layer_input(args, kwargs)))

    def _update_kept(self, runner: Runner, kept: dict[str, list[Drawn] | None]) -> None:
        """In all processes at once, the layers that rank 0 ran."""
        told = [[*kept], [name for name, inputs in kept.items() if inputs is None]]
        broadcast_object_list(told)
        trained, sources = self._kept_of  # before the step, after which averages may be unlike their layers
        averages = {layer: sources[layer] for layer in (trained[name][0] for name in told[1])}
        for name in told[0]:
            layer, copies = trained[name]
            if layer not in averages and layer not in self._done:
                copies = [*copies, *(each for each, source in averages.items() if source is layer)]
                self._lay(runner, name, copies, layer, kept.get(name))
        self._done = {}

    def _lay(self, runner: Runner, name: str, copies: list[GridUpdate], layer: GridUpdate,
             x: Tensor | list[Drawn] | None) -> None:
        """Lay the grid of a layer over inputs, which rank 0 has, in all processes."""
        tied = tied_to(layer, *copies)
        self._done |= dict.fromkeys(tied, False)  # they share this change, and have none of their own
        changed = torch.zeros(1)
        if get_rank() == 0:
            changed += layer.update_grid(x, followers=copies, **self.update)
        if is_distributed():
            changed = changed.to(layer.coefficient_parameter.device)
            broadcast(changed)
            for each in (layer, *copies, *tied):
                for tensor in (each.coefficient_parameter.data, *each.basis.parameters(), *each.basis.buffers()):
                    broadcast(tensor.data)
                each.basis.refresh()
        if changed.item():
            for each in (layer, *tied):
                self._done[each] = True
            for each in (layer, *copies, *tied):
                self._forget(runner, each)
            self._found.changed([*copies, *tied])
            show_averages(runner)
            self._moved += 1
            runner.logger.info(f'Grid of {name} updated')

    def after_train(self, runner: Runner) -> None:
        self._found.close()
        if self._updates and not self._moved:
            runner.logger.warning(
                f'KANGridUpdateHook moved no grid in {self._updates} updates: no more than '
                f'{100 * self.update["outside"]:g}% of the inputs of any layer lay outside of its grid. With outside=0 '
                'every update lays the grids anew')

    def _refine(self, runner: Runner, grid_size: int) -> None:
        trained = self._found.trained()
        with self._found.thawed():  # for the wrapper, which leaves out what is frozen
            for layer, copies in trained.values():
                layer.refine_grid(grid_size, copies)
                self._found.changed(copies)
                self._forget(runner, layer)
            follow_parameters(runner)
        runner.logger.info(f'Grids refined to {grid_size}')

    @staticmethod
    def _forget(runner: Runner, layer: GridUpdate) -> None:
        forget_in(runner, (layer.coefficient_parameter, *layer.basis.parameters()))
