"""What a RKAN block adds to its stage: by channel, by place and as feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from .overlay import show

if TYPE_CHECKING:
    from rkan_mm.inspection import Branch

IMAGES = 4
LARGEST = 10
"""Size up to which channels are told apart; larger ones stand there."""


def draw_branch(branch: Branch, images: Sequence[np.ndarray] = (), title: str | None = None) -> Figure:
    """Draw the size of a block's branch beside its stage: over channels, and on images as a map.

    In each row: the image, the mean over channels of the stage's output without and with the block (on one scale), and
    the part of the features that comes from the block, from 0 (none) to 1 (all).

    Args:
        branch: from a `BranchRecorder`.
        images: (H, W, 3) each, those that were given first, as the model saw them; at most four are drawn.
        title: of the figure.

    Raises:
        ValueError: the stage has not run.

    Example:
        >>> with BranchRecorder(model) as recorder:
        ...     _ = model(images)
        >>> draw_branch(recorder.branches['backbone.bridges.layer4']).savefig('branch.png')
    """
    sizes = branch.size_by_channel.numpy()
    images = list(images)[:min(IMAGES, len(branch.maps))]
    rows = 1 + len(images)
    figure = Figure((9, 2.2 + 2.1 * len(images)), layout='constrained')
    grid = figure.add_gridspec(rows, 4, height_ratios=[1.1] + [1] * len(images))
    axis = figure.add_subplot(grid[0, :])
    axis.hist(np.clip(sizes[~np.isnan(sizes)], 0, LARGEST), 60, color='#1f4e9c')
    axis.axvline(branch.size, color='#d95f02', lw=1.5, label=f'all channels: {branch.size:.3g}')
    beyond = int((sizes > LARGEST).sum())  # infinite where the stage gives nothing
    axis.set_xlabel('size of the branch beside the output of the stage (root mean squares), by channel'
                    + (f'; {beyond} are above {LARGEST}' if beyond else ''), fontsize=8)
    axis.set_ylabel('channels', fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)
    for row, (image, maps) in enumerate(zip(images, branch.maps, strict=False), 1):
        axes = [figure.add_subplot(grid[row, column]) for column in range(4)]
        show(axes[0], image, 'image')
        both = np.stack([maps['without'], maps['with_block']])
        limits = float(both.min()), float(both.max())
        show(axes[1], image, 'stage without the block', maps['without'], 'viridis', limits)
        show(axes[2], image, 'stage with the block', maps['with_block'], 'viridis', limits)
        drawn = show(axes[3], image, 'part of the block', maps['share'], 'turbo', (0, 1))
        figure.colorbar(drawn, ax=axes[3], shrink=0.8).ax.tick_params(labelsize=6)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
