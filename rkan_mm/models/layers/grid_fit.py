"""The functions of one grid in those of another, by least squares; the samples for that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import GridBasis

MAX_SAMPLES = 4096
"""Of each channel; more change little and cost time."""
MAX_KEPT = 1 << 18
"""Values that are kept of a call for an update after it, where these are more than `MAX_SAMPLES` of each channel."""
POINTS_PER_INTERVAL = 8
BACKGROUND = 1e-3
"""Weight of equally spaced points beside the samples: where there are no samples, functions stay as they are."""
RIDGE = 1e-12
CHUNK = 1 << 22
"""Values of functions that are held at a time."""


def some(x: Tensor, count: int) -> Tensor:
    """About ``count`` rows of a tensor, spread over it; all where it has less than two times as many.

    Not at equal distances: these meet the same few columns of each picture, or channels, wherever sizes are round.
    """
    return x if len(x) < 2 * count else _spread(x, count)


def _spread(x: Tensor, count: int) -> Tensor:
    places = torch.arange(count, dtype=torch.float64, device='cpu') * (math.sqrt(5) / 2 - 0.5) % 1
    return x[(places * len(x)).long().to(x.device)]


@dataclass(frozen=True)
class Drawn:
    """What the functions of a layer saw in a call, or a part of it."""

    samples: Tensor  # (n, rows)
    count: int  # of all rows
    ends: Tensor | None = None  # (2, rows): of all, the least and the greatest finite value, or inf and -inf


def draw(x: Tensor) -> Drawn:
    """A part of samples, (N, rows), which are left as they are; all where they are few."""
    part = some(x, max(MAX_SAMPLES, MAX_KEPT // x.shape[1]))
    if not len(x):
        return Drawn(part, 0)
    finite = x.isfinite()
    ends = torch.stack([x.where(finite, math.inf).amin(0), x.where(finite, -math.inf).amax(0)])
    return Drawn(part.clone() if len(part) == len(x) else part, len(x), ends)


def gather(parts: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
    """Samples of calls, (N, rows), of each in proportion to what it saw, and the ends if they are a part, (2, rows)."""
    rate = min((len(each.samples) / each.count for each in parts if each.count), default=1.0)
    samples = [each.samples if (share := max(1, round(rate * each.count))) >= len(each.samples) else
               _spread(each.samples, share) for each in parts]
    ends = [each.ends for each in parts if each.ends is not None]
    if rate == 1 or not ends:
        return torch.cat(samples).double(), samples[0][:0].double()
    low, high = torch.stack(ends).double().unbind(1)
    return torch.cat(samples).double(), torch.stack([low.amin(0), high.amax(0)])


def fit(old: GridBasis, new: GridBasis, samples: Tensor | None) -> Tensor:
    """Least-squares coefficients of the old functions in the new ones, (rows, F_new, F_old).

    Fitted at the samples, (N, rows), and with little weight at points all over the new grid; at these alone without
    samples.
    """
    low, high = new.interior()[:, 0], new.interior()[:, -1]
    count = POINTS_PER_INTERVAL * max(old.num_functions, new.num_functions) + 1
    steps = torch.linspace(0, 1, count, dtype=low.dtype, device=low.device)
    points = low + (high - low) * steps[:, None]  # (n, rows)
    gram = right = low.new_zeros(())
    for x, weight in ((points, BACKGROUND if samples is not None else 1.0), (samples, 1.0)):
        if x is None:
            continue
        rows = max(1, CHUNK // (x.shape[1] * new.num_functions))
        for part in x.split(rows):
            values_new, values_old = new(part).transpose(0, 1), old(part).transpose(0, 1)  # (rows, n, F)
            factor = weight / len(x)
            gram = gram + factor * values_new.mT @ values_new
            right = right + factor * values_new.mT @ values_old
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ridge = RIDGE * scale * torch.eye(new.num_functions, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, right)
