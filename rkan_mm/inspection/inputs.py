"""What the functions of a KAN layer really see: every tap at every place, padding included."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rkan_mm.models.layers import KANLinear

from .functions import LayerFunctions

Taps = list[tuple[Tensor, Tensor]]
"""For every tap, in row-major order, x and u: (rows, N) each. One entry stands for all where they see the same."""


def tap_inputs(functions: LayerFunctions, x: Tensor, limit: int, generator: torch.Generator) -> tuple[Taps, int]:
    """The arguments of a layer's functions for one input of the layer.

    Args:
        functions: of the layer.
        x: its input, as in its forward.
        limit: at most so many numbers of each tap; they are drawn at random.
        generator: for drawing them.

    Returns:
        The arguments, and how many of each row there were before drawing.
    """
    layer = functions.layer
    with torch.no_grad():
        x = x.detach()
        if isinstance(layer, KANLinear):
            x, u = (t.reshape(-1, t.shape[-1]).T for t in (x, seen(functions, x)))
            return _drawn([(x, u)], limit, generator)
        spatial = 2 if functions.shared else layer.spatial
        if x.dim() == spatial + 1:
            x = x.unsqueeze(0)
        if functions.shared and functions.two_arguments:
            patches = F.unfold(x.flatten(0, 1).unsqueeze(1), layer.kernel_size, layer.dilation, layer.padding,
                               layer.stride)
            u = layer.normalized(patches)  # (B * C, taps, L)
            return _drawn([(patches[:, tap].reshape(1, -1), u[:, tap].reshape(1, -1)) for tap in
                           range(patches.shape[1])], limit, generator)
        u = seen(functions, x)
        if getattr(layer, 'transposed', False):
            return _drawn([(x.transpose(0, 1).flatten(1), u.transpose(0, 1).flatten(1))], limit, generator)
        x, u = (padded(functions, t) for t in (x, u))
        return _slices(functions, x, u, limit, generator)


def seen(functions: LayerFunctions, x: Tensor) -> Tensor:
    """What the functions see of x."""
    return functions.layer.seen(x) if functions.two_arguments else x


def padded(functions: LayerFunctions, x: Tensor, value: float = 0.0) -> Tensor:
    """With what the convolution pads, ``value`` in the place of zeros; as one channel where the kernel is shared."""
    layer = functions.layer
    if functions.shared:
        x = x.flatten(0, 1).unsqueeze(1)
        padding = tuple(side for pad in reversed(layer.padding) for side in (pad, pad))
        return F.pad(x, padding, value=value)
    if layer.padding_mode == 'zeros':
        return F.pad(x, layer._reversed_padding_repeated_twice, value=value)
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)


def _slices(functions: LayerFunctions, x: Tensor, u: Tensor, limit: int,
            generator: torch.Generator) -> tuple[Taps, int]:
    """Each tap of a convolution, at the same randomly drawn places."""
    layer, sizes = functions.layer, x.shape[2:]
    kernel, stride, dilation = (getattr(layer, name) for name in ('kernel_size', 'stride', 'dilation'))
    out = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)]
    count = x.shape[0] * math.prod(out)
    places = _places(count, limit // x.shape[1], generator)
    # flat index of the first tap of each drawn place
    first = torch.zeros_like(places)
    rest, step = places, 1
    steps = []
    for size, o, s in zip(reversed(sizes), reversed(out), reversed(stride), strict=True):
        first += rest % o * s * step
        rest = rest // o
        steps.insert(0, step)
        step *= size
    image = rest
    taps = []
    flat = [t.transpose(0, 1).flatten(2) for t in (x, u)]  # (rows, B, places)
    for tap in range(math.prod(kernel)):
        offset, rest = 0, tap
        for k, d, step in zip(reversed(kernel), reversed(dilation), reversed(steps), strict=True):
            offset += rest % k * d * step
            rest //= k
        taps.append(tuple(t[:, image, first + offset].cpu() for t in flat))
    return taps, count


def _places(count: int, limit: int, generator: torch.Generator) -> Tensor:
    if count <= max(1, limit):
        return torch.arange(count)
    return torch.randint(count, (max(1, limit),), generator=generator)


def _drawn(taps: Taps, limit: int, generator: torch.Generator) -> tuple[Taps, int]:
    rows, count = taps[0][0].shape
    places = _places(count, limit // rows, generator)
    return [(x[:, places].cpu(), u[:, places].cpu()) for x, u in taps], count
