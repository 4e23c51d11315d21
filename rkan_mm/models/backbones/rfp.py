"""The recursive feature pyramid of mmdet's DetectoRS over a RKANet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .rkanet import RKANet


def rfp_forward(self: RKANet, x: Tensor, rfp_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``DetectoRS_ResNet.rfp_forward`` with the blocks; that one calls no stage but its parts, past all hooks of it.

    Args:
        self: has a ``DetectoRS_ResNet`` or ``DetectoRS_ResNeXt`` as its backbone.
        x: images, (B, 3, H, W).
        rfp_feats: what the pyramid gave before, one for each stage.

    Raises:
        ValueError: a block stands at less or more than one whole stage.
    """
    inner, bridges = self.backbone, {bridge.name: bridge for bridge in self.bridges.values()}
    for name in bridges:
        if name not in inner.res_layers:
            raise ValueError(f'RKANet: rfp_forward of {type(inner).__name__} runs past stage {name!r}; take whole '
                             f'stages: {", ".join(inner.res_layers)}')
    x = inner.stem(x) if inner.deep_stem else inner.relu(inner.norm1(inner.conv1(x)))
    x = inner.maxpool(x)
    outs = []
    for i, name in enumerate(inner.res_layers):
        before = x
        for layer in getattr(inner, name):
            x = layer.rfp_forward(x, rfp_feats[i] if i else None)
        if name in bridges:
            x = bridges[name](before, x)
        if i in inner.out_indices:
            outs.append(x)
    return tuple(outs)
