"""Parts of mm's own models that fix the batch or the size of images when traced, written so that they do not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from rkan_mm.models.ops import static_shape


def shifted_windows(self: nn.Module, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """``ShiftWindowMSA.forward`` of mmdet and mmpretrain, (B, H W, C) -> (B, H W, C), for any batch and size.

    Theirs makes a number of the batch, and draws the mask of the shifted windows by slices.
    """
    (height, width), channels, batch = hw_shape, static_shape(query)[2], query.shape[0]
    size, shift = self.window_size, self.shift_size
    if not getattr(self, 'pad_small_map', True) and min(height, width) <= size:
        shift = 0  # as theirs, which takes no smaller map; at the size that is traced
    rows, columns = (height + size - 1) // size, (width + size - 1) // size
    x = query.view(batch, height, width, channels)
    x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
    vertical, horizontal = (torch.arange(n * size, device=x.device) for n in (rows, columns))  # of the rolled map
    into = _windows(vertical.roll(-shift, 0)[:, None] * (columns * size) + horizontal.roll(-shift, 0), size)
    mask = None
    if shift:  # pixels that were no neighbours before the map was rolled do not see each other
        part = [(each >= each.shape[0] - size).long() + (each >= each.shape[0] - shift).long()
                for each in (vertical, horizontal)]
        part = _windows(3 * part[0][:, None] + part[1], size).view(rows * columns, size * size)
        mask = -100.0 * (part[:, None] - part[:, :, None]).ne(0).to(x.dtype)
    windows = x.view(batch, rows * size * columns * size, channels).index_select(1, into)
    windows = self.w_msa(windows.view(batch * rows * columns, size * size, channels), mask=mask)
    y, x = vertical.roll(shift, 0)[:height, None], horizontal.roll(shift, 0)[:width]
    out_of = ((y // size * columns + x // size) * size + y % size) * size + x % size
    windows = windows.view(batch, rows * columns * size * size, channels)
    return self.drop(windows.index_select(1, out_of.reshape(height * width)))


def _windows(pixels: Tensor, size: int) -> Tensor:
    """(H, W) -> (H W,), one window after the other."""
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    return pixels.view(rows, size, columns, size).transpose(1, 2).reshape(rows * columns * size * size)


def adaptive_padding(self: nn.Module, x: Tensor) -> Tensor:
    """``AdaptivePadding.forward`` of mmcv and mmdet, (B, C, H, W), which takes from the size whether to pad at all."""
    pads = []
    for length, stride, kernel, dilation in zip(x.shape[:-3:-1], *(_reversed(value) for value in (
            self.stride, self.kernel_size, self.dilation)), strict=True):
        reach = (kernel - 1) * dilation + 1
        if reach < stride:
            return type(self).forward(self, x)
        total = (length + stride - 1) // stride * stride - stride + reach - length
        before = total // 2 if self.padding == 'same' else 0
        pads += [before, total - before]
    return F.pad(x, pads)


def _reversed(value: int | tuple[int, int]) -> tuple[int, int]:
    return _pair(value)[::-1]


def repeated_mesh(x: Tensor, y: Tensor, row_major: bool = True) -> tuple[Tensor, Tensor]:
    """``MlvlPointGenerator._meshgrid`` of mmdet without an expand, whose sides `torch.export` takes for more than 1."""
    xx, yy = x.repeat(y.shape[0]), y.view(-1, 1).repeat(1, x.shape[0]).view(-1)
    return (xx, yy) if row_major else (yy, xx)


REWRITES: dict[str, Callable] = {'AdaptivePadding': adaptive_padding, 'ShiftWindowMSA': shifted_windows}
"""Names of classes of mmdet and mmpretrain, and what takes the place of their ``forward``."""


@contextlib.contextmanager
def exportable(model: nn.Module) -> Iterator[nn.Module]:
    """Meanwhile ``model`` can be traced for other batches and sizes: it computes what it did before.

    Example:
        >>> with exportable(model):
        ...     torch.onnx.export(model, (image,), 'model.onnx', dynamo=False, dynamic_axes=...)
    """
    rewritten: list[tuple[Any, str]] = []
    for module in model.modules():
        if type(module).__name__ in REWRITES:
            module.forward = MethodType(REWRITES[type(module).__name__], module)
            rewritten.append((module, 'forward'))
        points: Any = getattr(module, 'prior_generator', None)  # no module
        if type(points).__name__ == 'MlvlPointGenerator' and '_meshgrid' not in vars(points):
            points._meshgrid = repeated_mesh
            rewritten.append((points, '_meshgrid'))
    try:
        yield model
    finally:
        for owner, name in rewritten:
            delattr(owner, name)
