"""Which modules FSDP shards as units of their own."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from torch import nn

from rkan_mm.registry import FUNCTIONS


@FUNCTIONS.register_module()
@MMENGINE_FUNCTIONS.register_module()
def wrap_classes(module: nn.Module, recurse: bool, nonwrapped_numel: int, classes: Sequence[str]) -> bool:
    """An ``auto_wrap_policy`` of torch's FSDP by the names of classes, which a config can hold.

    A unit is gathered when it is called, so name only what is called by its ``forward``. mmdet's RPN and dense heads
    are entered by ``loss`` and ``predict``; they stay in the outermost unit. torch's policy by size would take them.

    Example:
        >>> wrap_classes(nn.Conv2d(1, 1, 1), False, 2, classes=('Conv2d',))
        True
    """
    return recurse or type(module).__name__ in classes
