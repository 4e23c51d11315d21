"""Stride, padding and dilation of KAN convolutions, which can be set after a layer was built."""

from __future__ import annotations

from typing import Any

from rkan_mm.models.ops import in_each

from .mixin import LayerMixin


class SetLater(LayerMixin):
    """Mixin of convolutions over ``spatial`` dimensions: takes what PyTorch's take when an attribute is set.

    They read ``layer.padding = 1``, or a list, only when they are called, and so people set it (dilated backbones).
    """

    spatial: int

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ('kernel_size', 'stride', 'padding', 'dilation'):
            value = in_each(value, self.spatial)
        super().__setattr__(name, value)
        if name == 'padding' and isinstance(value, tuple) and '_reversed_padding_repeated_twice' in self.__dict__ \
                and self.padding_mode == 'zeros':  # in other modes, PyTorch's layers keep to what they were built with
            self._reversed_padding_repeated_twice = [side for pad in reversed(value) for side in (pad, pad)]
