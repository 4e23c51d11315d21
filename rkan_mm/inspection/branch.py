"""What a RKAN block adds to its stage: how large it is, where, and how far it turns the features."""

from __future__ import annotations

import math
from types import TracebackType

import torch
from torch import Tensor, nn

from rkan_mm.models.backbones.bridged_stage import BridgedStage

from .functions import unwrap
from .swap import swapped

PLACES = 256
"""Places of each image from which CKA is computed."""


def bridges(model: nn.Module) -> dict[str, BridgedStage]:
    """The stages with RKAN blocks of all RKANets in a model, by the name of the module.

    Example:
        >>> list(bridges(RKANet(backbone=dict(type='mmdet.ResNet', depth=18))))
        ['bridges.layer4']
    """
    return {name: module for name, module in unwrap(model).named_modules() if isinstance(module, BridgedStage)}


class Branch:
    r"""Of one stage: its output without the block, `out`, beside what block and fusion add to it, `fused - out`.

    Args:
        name: of the stage.
        num_maps: images of which maps are kept.
        seed: for drawing places.
    """

    def __init__(self, name: str, num_maps: int = 8, seed: int = 0) -> None:
        self.name, self.num_maps = name, num_maps
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = self.count = 0
        self._out = self._added = torch.zeros((), dtype=torch.float64)
        self._cosine = 0.0
        self._moments: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._cka_count = 0
        self.maps: list[dict[str, Tensor]] = []
        self._images = 0

    def add(self, out: Tensor, fused: Tensor) -> None:
        """Look at one output, (B, C, H, W), without and with the block."""
        self.calls += 1
        out, fused = out.detach().float(), fused.detach().float()
        added = fused - out
        self.count += out.shape[0] * out.shape[2] * out.shape[3]
        self._out = self._out + out.double().square().sum((0, 2, 3)).cpu()
        self._added = self._added + added.double().square().sum((0, 2, 3)).cpu()
        self._cosine += torch.cosine_similarity(out, fused, 1).double().sum().item()
        for one, other, difference in zip(out, fused, added, strict=True):
            self._pairs(one.flatten(1).T, other.flatten(1).T)  # (H W, C)
            if len(self.maps) < self.num_maps:
                size, grown = (t.square().mean(0).sqrt() for t in (one, difference))
                self.maps.append(dict(without=one.mean(0).cpu(), with_block=other.mean(0).cpu(),
                                      branch=grown.cpu(), share=(grown / (size + grown + 1e-12)).cpu()))

    def end_image(self) -> None:
        """One image is through: of its maps the last stays, where the stage ran for it more than once."""
        if len(self.maps) > self._images:
            del self.maps[self._images:-1]
            self._images += 1

    def _pairs(self, one: Tensor, other: Tensor) -> None:
        """Second moments between channels of both, at drawn places."""
        if len(one) > PLACES:
            places = torch.randperm(len(one), generator=self.generator)[:PLACES].to(one.device)
            one, other = one[places], other[places]
        one, other = one.double().cpu(), other.double().cpu()
        both = [(t, t.square().sum(1)) for t in (one, other)]
        for i, j in ((0, 0), (1, 1), (0, 1)):
            (x, k), (y, m) = both[i], both[j]  # features and their squared lengths
            new = (x.T @ y, x.sum(0), y.sum(0), m @ x, k @ y, k.sum(), m.sum(), k @ m)
            old = self._moments.get((i, j))
            self._moments[i, j] = new if old is None else tuple(a + b for a, b in zip(old, new, strict=True))
        self._cka_count += len(one)

    def _check(self) -> None:
        if not self.calls:
            raise ValueError(f'{self.name}: the stage has not run')

    @property
    def size(self) -> float:
        """Root mean square of what is added, by that of the stage's own output."""
        self._check()
        return (self._added.sum() / self._out.sum()).sqrt().item()

    @property
    def size_by_channel(self) -> Tensor:
        """The same for each channel, (C,); infinite where the stage gives nothing."""
        self._check()
        return (self._added / self._out).sqrt()

    @property
    def cosine(self) -> float:
        """Between the output with and without the block, over channels; mean over places."""
        self._check()
        return self._cosine / self.count

    @property
    def cka(self) -> float:
        """Linear centred kernel alignment (arXiv 1905.00414) of the output with and without, 1 where they are alike.

        By the unbiased estimate (arXiv 2010.15327): the plain one is near 1 for any two outputs of which fewer places
        are seen than they have channels. NaN for fewer than four places.
        """
        self._check()
        if self._cka_count < 4:
            return float('nan')
        one, other, both = (self._hsic(*self._moments[pair]) for pair in ((0, 0), (1, 1), (0, 1)))
        return both / math.sqrt(one * other) if one > 0 and other > 0 else float('nan')

    def _hsic(self, both: Tensor, x: Tensor, y: Tensor, mx: Tensor, ky: Tensor, k: Tensor, m: Tensor,
              km: Tensor) -> float:
        """The unbiased estimate, but for a factor, from sums over places: see `_pairs`."""
        n = self._cka_count
        trace = both.square().sum() - km  # of the products of features at two places, each by each
        ones = (x @ x - k) * (y @ y - m) / ((n - 1) * (n - 2))
        cross = x @ both @ y - mx @ x - ky @ y + km
        return (trace + ones - 2 * cross / (n - 2)).item()


class BranchRecorder:
    """While it is entered, collects a `Branch` for each RKAN block of a model from all that it is given.

    Args:
        model: holds RKANets.
        num_maps: images of which maps are kept.

    Example:
        >>> model = RKANet(backbone=dict(type='mmdet.ResNet', depth=18)).eval()
        >>> with BranchRecorder(model) as recorder:
        ...     _ = model(torch.rand(2, 3, 64, 64))
        >>> recorder.branches['bridges.layer4'].size_by_channel.shape
        torch.Size([512])
    """

    def __init__(self, model: nn.Module, num_maps: int = 8) -> None:
        self._bridges = bridges(model)
        self.branches = {name: Branch(name, num_maps) for name in self._bridges}
        self._swaps = []

    def __enter__(self) -> BranchRecorder:
        for name, bridge in self._bridges.items():
            def fuse(x: Tensor, out: Tensor, real=bridge.fuse, branch=self.branches[name]) -> Tensor:
                kept = out.clone()  # a fusion may write to it
                fused = real(x, out)
                branch.add(kept, fused)
                return fused
            swap = swapped(bridge, 'fuse', fuse)
            swap.__enter__()
            self._swaps.append(swap)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._swaps:
            self._swaps.pop().__exit__(None, None, None)
