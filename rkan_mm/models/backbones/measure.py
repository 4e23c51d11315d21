"""What a backbone's stages map to what, found by one forward pass."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .bridged_stage import feature_map, stage_input, token_size

SIDES = 64, 224, 256, 384
"""Of images to measure with: the first that is taken, and in which no stage has a single pixel to halve."""


def measure(backbone: nn.Module, spans: dict[str, tuple[nn.Module, nn.Module]], size: tuple[int, int] | None,
            in_channels: int | Sequence[int] | None = None) -> dict[str, dict[str, Any]]:
    """Of each stage: channels, stride, whether a convolution follows it, and a sample of its output.

    Args:
        backbone: any module from images to features, or from features to features. It is left as it was.
        spans: first and last module of each stage, by its name.
        size: height and width of the image; None tries several.
        in_channels: of the image, or of each map that a neck takes; None looks at the backbone.

    Raises:
        ValueError: a stage does not run, maps something else than feature maps, or no output depends on it.
        RuntimeError: the backbone fails on an image of zeros.
    """
    measured, failed = None, None
    for each in [(side, side) for side in SIDES] if size is None else [size]:
        try:
            found, is_certain = _measure(backbone, spans, each, in_channels)
        except RuntimeError as error:
            failed = failed or error
            continue
        if is_certain:
            return found
        measured = measured or found
    if measured is None:
        assert failed
        raise failed
    return measured


def _measure(backbone: nn.Module, spans: dict[str, tuple[nn.Module, nn.Module]], size: tuple[int, int],
             in_channels: int | Sequence[int] | None) -> tuple[dict[str, dict[str, Any]], bool]:
    """With images of one size, and whether the strides are certain."""
    probes = {name: _Probe(*span) for name, span in spans.items()}
    weighted = []

    def count(module: nn.Module, args: tuple, out: Any) -> None:
        if isinstance(out, Tensor) and out.dim() > 2:  # not the classifier of a whole network
            weighted.append(module)

    learns = not any(p.is_inference() for p in backbone.parameters())  # made in inference mode, it never can
    device = next(backbone.parameters(), torch.empty(0)).device.type
    with (_at_rest(backbone), torch.inference_mode(not learns), torch.set_grad_enabled(learns),
          torch.autocast(device if torch.amp.is_autocast_available(device) else 'cpu', enabled=False),
          ExitStack() as stack):
        for probe in probes.values():
            stack.enter_context(probe.watching_hooks())
        for module in backbone.modules():
            if getattr(module, 'weight', None) is not None and module.weight.dim() > 1:
                stack.callback(module.register_forward_hook(count).remove)
        for probe in probes.values():
            stack.enter_context(probe.watching(weighted))
        outputs = _run(backbone, size, in_channels, weighted)

    who = type(backbone).__name__
    for name, probe in probes.items():
        probe.check(f'of stage {name!r} of {who}', size)
    if learns:
        _check_use(backbone, probes, outputs)
    measured = {}
    for name, probe in probes.items():
        x, out = probe.x, probe.out
        stride = tuple(round(i / o) for i, o in zip(x.shape[2:], out.shape[2:], strict=True))
        if not all(stride):
            raise ValueError(f'RKANet: stage {name!r} of {who} enlarges its maps, {tuple(x.shape)} to '
                             f'{tuple(out.shape)}, and an RKAN block does not. Name modules in it that keep their size')
        measured[name] = dict(in_channels=x.shape[1], out_channels=out.shape[1], stride=stride,
                              last=probe.seen == len(weighted), out=out.detach(), ahead_of=tuple(probe.looking))
    return measured, all(min(probe.x.shape[2:]) > 1 for probe in probes.values())


class _Probe:
    """Records what goes into a stage and what comes out; a 0 added there tells whether outputs depend on it."""

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        self.first, self.last = first, last
        self.x: Any = None
        self.out: Any = None
        self.zero: Tensor | None = None
        self.ran, self.seen = [False, False], 0
        self.looking: list[int] = []  # ids of the last hooks at its end that leave its output as it is

    @contextmanager
    def watching_hooks(self) -> Iterator[None]:
        hooks = self.last._forward_hooks
        before = dict(hooks)

        def watched(key: int, hook: Callable, *args: Any) -> Any:
            out = hook(*args)
            if out is not None:
                changing.add(key)
            return out

        changing: set[int] = set()
        hooks.update({key: partial(watched, key, hook) for key, hook in before.items()})
        try:
            yield
        finally:
            hooks.update({key: hook for key, hook in before.items() if key in hooks})
            self.looking = list(takewhile(lambda key: key not in changing, reversed(before)))[::-1]

    @contextmanager
    def watching(self, weighted: list[nn.Module]) -> Iterator[None]:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.x, self.ran[0] = feature_map(stage_input(args, kwargs), token_size(args, kwargs)), True

        def leave(module: nn.Module, args: tuple, out: Any) -> Any:
            if not isinstance(out, Tensor):
                return out
            self.zero = torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=torch.is_grad_enabled())
            return out + self.zero

        def note(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            self.out, self.ran[1], self.seen = feature_map(out, token_size(args, kwargs)), True, len(weighted)

        handles = (self.first.register_forward_pre_hook(enter, with_kwargs=True),
                   self.last.register_forward_hook(leave, prepend=True),
                   self.last.register_forward_hook(note, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, where: str, size: tuple[int, int]) -> None:
        if not all(self.ran):
            raise ValueError(f'RKANet: {where.removeprefix("of ")} does not run in its forward pass')
        for side, value in (('input', self.x), ('output', self.out)):
            if not isinstance(value, Tensor) or value.dim() != 4:
                what = f'of shape {tuple(value.shape)}' if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f'RKANet: the {side} {where} is {what}; an RKAN block needs feature maps '
                                 '(B, C, H, W)')
            by_last = [tuple(round(n / m) for n, m in zip(size, value.shape[i:i + 2], strict=True)) for i in (1, 2)]
            if len(set(by_last[0])) == 1 < len(set(by_last[1])):
                raise ValueError(f'RKANet: the {side} {where} is of shape {tuple(value.shape)} for images of '
                                 f'{size[0]} x {size[1]} px, as of (B, H, W, C); an RKAN block needs (B, C, H, W)')


def _check_use(backbone: nn.Module, probes: dict[str, _Probe], outputs: Any) -> None:
    tensors = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
    outputs = [t for t in tensors if t.requires_grad]
    if not outputs or not probes:
        if tensors and probes:
            print_log(f'RKANet: no output of {type(backbone).__name__} has gradients, as under no_grad or behind '
                      'detach. If that is so in training, too, its RKAN blocks never learn: freeze the backbone by '
                      'requires_grad=False of its parameters instead', 'current', logging.WARNING)
        return
    used, seen, nodes = set(), set(), [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            used.add(id(getattr(node, 'variable', None)))  # of a leaf
            nodes += [following for following, _ in node.next_functions]
    unused = [name for name, probe in probes.items() if id(probe.zero) not in used]
    if unused:
        indices = getattr(backbone, 'out_indices', None)
        outs = '' if indices is None else f' with out_indices={indices!r}'
        raise ValueError(f'RKANet: no output of {type(backbone).__name__}{outs} depends on stage {unused[0]!r}, so its '
                         "RKAN block would never learn. Name an earlier one in stages, or have the stage's output "
                         'returned, by out_indices of most backbones')


def _run(backbone: nn.Module, size: tuple[int, int], in_channels: int | Sequence[int] | None,
         weighted: list[nn.Module]) -> Any:
    """What it makes of an image of zeros, with as many channels as its first convolution takes where none are given.

    A neck, whose ``in_channels`` are those of several maps, gets maps of zeros with strides 4, 8, 16 and so on.
    """
    like = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))

    def zeros(channels: int, stride: int = 1) -> Tensor:
        return torch.zeros(1, channels, *(max(1, side // stride) for side in size), dtype=like.dtype,
                           device=like.device, requires_grad=torch.is_grad_enabled())

    several = in_channels or next((m.in_channels for m in backbone.modules() if hasattr(m, 'in_channels')), None)
    inputs: list[Tensor | tuple[Tensor, ...]] = []
    if isinstance(several, Sequence):  # from fine to coarse, but those of YOLOv3's neck
        inputs += [tuple(zeros(channels, 4 << i) for i, channels in enumerate(order))
                   for order in (several, several[::-1])]
    if not isinstance(in_channels, Sequence):
        convs = [m.in_channels for m in backbone.modules() if isinstance(getattr(m, 'in_channels', None), int)]
        wanted = [in_channels] if in_channels else list(dict.fromkeys((*convs[:1], 3)))
        images = [zeros(channels) for channels in wanted]
        inputs += [*images, *((image,) for image in images)]  # the latter for necks of one map
    others = list(inspect.signature(backbone.forward).parameters.values())[1:]
    more = sum(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in others)
    maskless: list[tuple] = [(given, *[None] * more) for given in inputs]  # None for the masks of recipes
    repeated = [(given,) * (1 + more) for given in inputs] if more else []  # or it takes several images
    errors: list[Exception] = []
    for args in (*maskless, *repeated):
        weighted.clear()
        try:
            return backbone(*(tree_map(lambda t: t if t is None else t * 1, each) for each in args))
        except Exception as error:
            errors.append(error)
    what = 'an image of zeros' if isinstance(inputs[0], Tensor) else 'maps of zeros'
    shapes = ', '.join(str(tuple(t.shape)) for t in tree_leaves(inputs[0]))
    with_images = f' (with images in the place of further arguments: {errors[len(inputs)]})' if more else ''
    raise RuntimeError(
        f'RKANet: to measure its stages, {type(backbone).__name__} was given {what} {shapes}, and failed: '
        f'{str(errors[0]) or type(errors[0]).__name__}{with_images}. '
        'Where it takes images of other sizes alone, give one, e.g. input_size=(512, 512)') from errors[0]


@contextmanager
def _at_rest(backbone: nn.Module) -> Iterator[None]:
    """Meanwhile all is in eval mode, as by `train`, and nothing is run within a checkpoint."""
    modes = [(module, module.training, module.__dict__.get('with_cp')) for module in backbone.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    try:
        backbone.train(False)  # some prepare there what they compute with, and drop it again
        for module, _, with_cp in modes:
            module.training = False
            if with_cp:
                module.with_cp = False
        yield
    finally:
        backbone.train(modes[0][1])
        for parameter, requires_grad in learning:
            if parameter.requires_grad != requires_grad:  # those made in inference mode cannot be told
                parameter.requires_grad_(requires_grad)
        for module, training, with_cp in modes:
            module.training = training
            if with_cp:
                module.with_cp = with_cp
