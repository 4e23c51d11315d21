"""What the functions of KAN layers do on real inputs: their sizes, how straight they are, where they are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from rkan_mm.models.layers import GridBasis
from rkan_mm.models.layers.locked import functions_shape, is_shared
from rkan_mm.models.layers.symbolic_trace import layer_input

from .functions import Index, LayerFunctions, kan_layers, unwrap
from .inputs import Taps, tap_inputs

LIMIT = 1 << 16
"""Numbers that are looked at for each tap, layer and call."""
FEW = 64
"""Functions of a layer, up to which the inputs of all are kept; those of shared kernels are always."""
SATURATED = 0.99
"""From this |tanh| on an input counts as beyond the range of its function."""


@dataclass(frozen=True)
class Lines:
    """The best straight line of each function over its inputs, tensors in the shape of the ordinary layer's weight.

    Args:
        intercept: value at 0.
        slope: by x.
        slope_u: by what the normalisation makes of x, where functions have two arguments.
    """

    intercept: Tensor
    slope: Tensor
    slope_u: Tensor | None


class Statistics:
    r"""Of one layer: second moments of all that its functions are made of, over the inputs that each tap has.

    From these follow, for every function and without keeping inputs, mean, variance, root mean square, best straight
    line and the share of its variance that no straight line explains.

    Args:
        functions: of the layer.
        keep: functions whose inputs are kept as samples, to draw them.
        num_samples: inputs kept of each; of more, drawn from those of all calls.
        seed: for drawing places where there are too many.
    """

    def __init__(self, functions: LayerFunctions, keep: list[Index] | None = None, num_samples: int = 100_000,
                 seed: int = 0) -> None:
        self.functions, self.num_samples = functions, num_samples
        self.generator, self._thinning = (torch.Generator().manual_seed(seed) for _ in range(2))
        self.calls = self.count = 0
        self._gram = torch.empty(0)  # (taps, rows, Q, Q) over 1, x, [u], planes
        self._beyond = self._seen = 0.0
        self._range = torch.empty(0), torch.empty(0)  # (taps, rows) each
        self._kept = {self._place(index): torch.zeros(2, 0, dtype=torch.float64) for index in keep or ()}
        # of functions that are locked to a formula f: sums of f, f x and f^2
        self._locked = {index: torch.zeros(3, dtype=torch.float64) for index in functions.locked}

    def _place(self, index: Index) -> tuple[int, int]:
        """Tap and row of a function."""
        tap = 0
        for place, size in zip(index[-len(self.functions.taps):] if self.functions.taps else (), self.functions.taps,
                               strict=True):
            tap = tap * size + place
        return (0 if getattr(self.functions.layer, 'transposed', False) else tap), self.functions.row(index)

    def add(self, x: Tensor) -> None:
        """Look at one input of the layer."""
        taps, count = tap_inputs(self.functions, x, LIMIT, self.generator)
        if not count:
            return
        self.calls += 1
        self.count += count
        grams, lows, highs = [], [], []
        for tap, (x, u) in enumerate(taps):
            x, u = x.double(), u.double()
            argument = u if self.functions.two_arguments else x
            straight = (torch.ones_like(x), x, u)[:3 if self.functions.two_arguments else 2]
            design = torch.cat([torch.stack(straight, 1), self.functions.planes(x, u)], 1)  # (rows, Q, N)
            grams.append(design @ design.mT * (count / x.shape[1]))
            lows.append(argument.amin(1))
            highs.append(argument.amax(1))
            beyond = self._outside(argument)
            if beyond is not None:
                self._beyond += beyond.sum().item() * count / x.shape[1]
                self._seen += count * len(x)
            self._keep(tap, x, u, count)
        self._add_locked(taps, count)
        gram, low, high = torch.stack(grams), torch.stack(lows), torch.stack(highs)
        if not len(self._gram):
            self._gram, self._range = gram, (low, high)
        else:
            self._gram += gram
            self._range = torch.minimum(self._range[0], low), torch.maximum(self._range[1], high)

    def _outside(self, argument: Tensor) -> Tensor | None:
        functions = self.functions
        if functions.normalization == 'tanh':
            return argument.tanh().abs() > SATURATED
        if not isinstance(functions.basis, GridBasis):
            return None
        points = functions.basis.interior()
        return (argument < points[:, :1]) | (argument > points[:, -1:])

    def _add_locked(self, taps: Taps, count: int) -> None:
        for index, moments in self._locked.items():
            tap, row = self._place(index)
            x = taps[min(tap, len(taps) - 1)][0][row].double()
            f = self.functions.locked[index](x)
            moments += torch.stack([f, f * x, f * f]).sum(1) * (count / len(x))

    def _keep(self, tap: int, x: Tensor, u: Tensor, count: int) -> None:
        """Once not all can be kept, each call has about the part of them that it has of all inputs so far."""
        for place, old in self._kept.items():
            if place[0] == tap:
                new = torch.stack([x[place[1]], u[place[1]]])
                share = max(round(self.num_samples * count / self.count), self.num_samples - old.shape[1])
                new = self._some(new, share)
                self._kept[place] = torch.cat([self._some(old, self.num_samples - new.shape[1]), new], 1)

    def _some(self, samples: Tensor, number: int) -> Tensor:
        if samples.shape[1] <= number:
            return samples
        return samples[:, torch.randperm(samples.shape[1], generator=self._thinning)[:number]]

    # -- what follows ------------------------------------------------------------------------------------------------
    def samples(self, index: Index) -> tuple[Tensor, Tensor]:
        """Kept inputs of a function: x and u, (N,) each.

        Raises:
            KeyError: it is not among those whose inputs are kept.
        """
        name = self.functions.name or type(self.functions.layer).__name__
        if self._place(index) not in self._kept:
            raise KeyError(f'{name}: the inputs of function {tuple(index)} were not kept; name it when they are '
                           f'recorded, by Recorder(model, keep={{{name!r}: [{tuple(index)}, ...]}})')
        x, u = self._kept[self._place(index)]
        return x, u

    def range(self, index: Index) -> tuple[float, float]:
        """Least and greatest argument that a function had."""
        tap, row = self._place(index)
        low, high = self._range
        tap = min(tap, len(low) - 1)
        return low[tap, row].item(), high[tap, row].item()

    def row_range(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest argument of each input channel, (rows,) each, over all taps.

        Raises:
            ValueError: the layer has not run.
        """
        self._check()
        return self._range[0].amin(0).numpy(), self._range[1].amax(0).numpy()

    @property
    def overflow(self) -> float | None:
        """Part of the inputs beyond the grid, or where tanh is above 0.99; None where there is neither."""
        return self._beyond / self._seen if self._seen else None

    def _check(self) -> None:
        if not len(self._gram):
            raise ValueError(f'{self.functions.name or type(self.functions.layer).__name__}: the layer has not run')

    def _solve(self) -> tuple[Tensor, ...]:
        """Of all functions: mean, mean square, what a line explains of it, and the line: (rows, M, taps) each."""
        self._check()
        functions, gram = self.functions, self._gram / self.count
        q = 3 if functions.two_arguments else 2
        weights = functions.by_place(functions.all_weights())  # (rows, P, M, taps)
        parts = []
        for tap in range(weights.shape[3]):
            g, w = gram[min(tap, len(gram) - 1)], weights[..., tap]
            right = g[:, :q, q:] @ w  # (rows, q, M)
            line = _line(g[:, :q, :q], right)
            parts.append((right[:, 0], (w * (g[:, q:, q:] @ w)).sum(1), (line * right).sum(1), line))
        mean, square, explained, line = (torch.stack([part[i] for part in parts], -1) for i in range(4))
        if self._locked:
            numbers = torch.arange(len(functions)).reshape(*functions.shape, 1)
            places = functions.by_place(numbers)[:, 0]  # (rows, M, taps)
        for index, moments in self._locked.items():
            place = tuple((places == numbers[index]).nonzero()[0].tolist())
            g = gram[min(place[2], len(gram) - 1), place[0], :q, :q]
            right = moments[:2] / self.count
            own = _line(g, right[:, None])[:, 0]
            mean[place], square[place], explained[place] = right[0], moments[2] / self.count, own @ right
            line[place[0], :, place[1], place[2]] = own
        return mean, square, explained, line

    def rms(self) -> Tensor:
        """Root mean square of each function over its inputs: its importance, in the shape of the weight."""
        return self.functions.by_index(self._solve()[1].clamp(min=0).sqrt())

    def std(self) -> Tensor:
        """Standard deviation of each function over its inputs."""
        mean, square, *_ = self._solve()
        return self.functions.by_index((square - mean**2).clamp(min=0).sqrt())

    def nonlinear_share(self) -> Tensor:
        """Part of each function's variance that its best straight line leaves; NaN where it hardly varies."""
        mean, square, explained, _ = self._solve()
        variance = square - mean**2
        share = ((square - explained) / variance).clamp(0, 1)
        return self.functions.by_index(torch.where(variance > 1e-12 * square, share, torch.nan))

    def variances(self) -> tuple[float, float]:
        """Of all functions, summed: what their best straight lines leave of their variances, and these."""
        mean, square, explained, _ = self._solve()
        return (square - explained).clamp(min=0).sum().item(), (square - mean**2).clamp(min=0).sum().item()

    def total_nonlinear_share(self) -> float:
        """The same of all functions together: their unexplained variances by their variances, summed."""
        left, variance = self.variances()
        return left / variance if variance > 0 else math.nan

    def lines(self) -> Lines:
        """The best straight line of each function."""
        line = self._solve()[3]
        own = [self.functions.by_index(line[:, i]) for i in range(line.shape[1])]
        return Lines(own[0], own[1], own[2] if len(own) > 2 else None)


def few(layer: nn.Module) -> int:
    """Number of a KAN layer's functions if the inputs of all are kept, else 0."""
    number = math.prod(functions_shape(layer))
    return number if number <= FEW or is_shared(layer) else 0


def _line(gram: Tensor, right: Tensor) -> Tensor:
    """Least squares in 1, x and, where there is one, u: (..., q, M).

    Of what is left of the inputs without their mean, and by its size: where the mean is large beside it, or all of them
    are small, digits would be lost.

    Args:
        gram: mean products of 1, x, u among each other, (..., q, q).
        right: with the functions, (..., q, M).
    """
    mean, value = gram[..., 1:, :1], right[..., :1, :]
    left = gram[..., 1:, 1:] - mean @ mean.mT
    size = left.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    rounding = 1e-7 * gram[..., 1:, 1:].diagonal(dim1=-2, dim2=-1).sqrt()
    inverse = torch.where(size > rounding, 1 / size, 0).unsqueeze(-1)
    alike = torch.linalg.pinv(left * inverse * inverse.mT, hermitian=True, rtol=1e-10)
    slope = inverse * (alike @ (inverse * (right[..., 1:, :] - mean @ value)))
    return torch.cat([value - mean.mT @ slope, slope], -2)


class Recorder:
    """While it is entered, collects `Statistics` of KAN layers from all that a model is given.

    Args:
        model: holds KAN layers.
        layers: names of those to look at; None for all.
        keep: by name, functions whose inputs are kept; None keeps those of shared kernels and of layers with at most
            `FEW`.
        num_samples: inputs kept of each.

    Example:
        >>> block = RKANBlock(8, 8).eval()
        >>> with Recorder(block) as recorder:
        ...     _ = block(torch.rand(2, 8, 6, 6))
        >>> recorder['kan1'].nonlinear_share().shape
        torch.Size([3, 3])
    """

    def __init__(self, model: nn.Module, layers: list[str] | None = None,
                 keep: dict[str, list[Index]] | None = None, num_samples: int = 100_000) -> None:
        self._layers = {name: layer for name, layer in kan_layers(unwrap(model)).items()
                        if layers is None or name in layers}
        self.statistics = {}
        for name, layer in self._layers.items():
            functions = LayerFunctions(layer, name)
            own = keep.get(name, []) if keep is not None else functions.indices() if few(layer) else []
            self.statistics[name] = Statistics(functions, own, num_samples)
        self._handles = []

    def __getitem__(self, name: str) -> Statistics:
        return self.statistics[name]

    def __enter__(self) -> Recorder:
        for name, layer in self._layers.items():
            own = self.statistics[name]
            self._handles.append(layer.register_forward_pre_hook(
                lambda layer, args, kwargs, own=own: own.add(layer_input(args, kwargs)), with_kwargs=True))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
