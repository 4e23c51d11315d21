"""What a block is worth: the metric with it, with straight lines in the place of its functions, and without it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial

from mmengine.structures import BaseDataElement
from torch import nn

from rkan_mm.models import RKANBlock

from .branch import bridges
from .functions import kan_layers, unwrap
from .statistics import Lines, Recorder
from .swap import straightened, without_block, without_functions


@dataclass
class Part:
    """What is turned off or straightened together: a RKAN block, or all KAN layers outside of blocks.

    Args:
        name: of the module, or of what they are.
        title: what the page calls it.
        layers: KAN layers in it, by name.
        off: makes a context in which the part gives nothing.
    """

    name: str
    title: str
    layers: dict[str, nn.Module]
    off: Callable[[], AbstractContextManager]


def parts(model: nn.Module) -> list[Part]:
    """Blocks of a model, one by one, and its other KAN layers together."""
    layers, found, taken = kan_layers(model), [], set()
    modules = dict(unwrap(model).named_modules())
    blocks: dict[str, nn.Module] = dict(bridges(model))
    inside = {id(child) for bridge in blocks.values() for child in bridge.modules()}
    blocks |= {name: module for name, module in modules.items() if isinstance(module, RKANBlock)
               and id(module) not in inside}
    titles = [getattr(block, 'name', name) for name, block in blocks.items()]
    for name, block in blocks.items():
        own = {id(module) for module in block.modules()}
        title = getattr(block, 'name', name)
        title = title if titles.count(title) == 1 else name
        found.append(Part(name, title, {key: layer for key, layer in layers.items() if id(layer) in own},
                          partial(without_block, block)))
        taken |= own
    others = {name: layer for name, layer in layers.items() if id(layer) not in taken}
    if others:
        found.append(Part('KAN layers', 'KAN layers', others,
                          lambda: without_functions(list(others.values()))))
    return found


@dataclass
class Variant:
    """One way to run the model, with what came out.

    Args:
        name: ``'as trained'``, ``'straight'`` or ``'off'``.
        part: of which part; '' where of none or all.
        metrics: of the evaluator.
        predictions: of each image in turn.
        interval: of the difference of the first metric from the trained model's, 95 % by resampling images.
    """

    name: str
    part: str
    metrics: dict[str, float] = field(default_factory=dict)
    predictions: list[BaseDataElement] = field(default_factory=list)
    interval: tuple[float, float] | None = None


def variants(model: nn.Module, recorder: Recorder) -> Iterator[tuple[Variant, AbstractContextManager]]:
    """As trained, then each part straight and off, then all of them where there are several."""
    yield Variant('as trained', ''), nullcontext()
    found = parts(model)
    for part in found:
        yield Variant('straight', part.name), straightened(_lines(part, recorder))
        yield Variant('off', part.name), part.off()
    if len(found) > 1:
        yield Variant('straight', 'everything'), straightened(
            {layer: lines for part in found for layer, lines in _lines(part, recorder).items()})
        yield Variant('off', 'everything'), _all_off(found)


@contextlib.contextmanager
def _all_off(found: list[Part]) -> Iterator[None]:
    with ExitStack() as stack:
        for part in found:
            stack.enter_context(part.off())
        yield


def _lines(part: Part, recorder: Recorder) -> dict[nn.Module, Lines]:
    """Of those layers that have run."""
    return {layer: recorder[name].lines() for name, layer in part.layers.items()
            if name in recorder.statistics and recorder[name].calls}
