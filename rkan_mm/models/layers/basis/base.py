"""What all bases of one-dimensional functions have in common."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from rkan_mm.models.ops import Functions, is_watched

SAYS, COMPUTES = ('functions', 'kind'), ('forward', 'window', 'evaluate', '_cardinal', '_cox_de_boor')
"""What says what the compiled kernels compute, and what computes it without them."""


class Basis(nn.Module):
    """Functions of one variable, applied to every element of a tensor.

    Subclasses compute in the precision of their input; layers hand them float32 where the input is half.
    """

    normalization: ClassVar[str] = 'none'
    """What a layer applies before the functions unless it is told otherwise."""
    second: ClassVar[dict] = {}
    """What the second KAN convolution of an RKAN block changes in the basis of the first (arXiv 2410.05500)."""
    constant_first: ClassVar[bool] = False
    """Whether the first function is 1 everywhere; layers then make one bias of its coefficients."""

    @property
    @abstractmethod
    def num_functions(self) -> int:
        """F, a constant first function included."""

    @abstractmethod
    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Values of all functions, in a new dimension behind ``dim``: (B, C, H, W) with dim=1 -> (B, C, F, H, W)."""

    def spread(self, channels: int) -> None:
        """Prepare for inputs with so many channels in ``dim``. Nothing to do without a grid for each channel."""

    def reset_parameters(self) -> None:
        """Parameters and buffers as they are at first, of the present number of functions."""

    def functions(self) -> Functions | None:
        """What the compiled kernel of `rkan_mm.models.ops.expand` computes; None where it knows no such functions.

        A first function that is 1 everywhere is left out there.
        """
        return None

    @classmethod
    @functools.cache
    def computes_as_it_says(cls) -> bool:
        """Whether no subclass computes other values without saying so in `functions`, too."""
        says, computes = (next(i for i, each in enumerate(cls.__mro__) if any(name in vars(each) for name in names))
                          for names in (SAYS, COMPUTES))
        return says <= computes

    def for_kernels(self) -> Functions | None:
        """`functions`, but None where a subclass or somebody's hook has other values. Not for transforms."""
        if is_watched(self) or not self.computes_as_it_says():
            return None
        return self.functions()

    def at_zero(self, like: Tensor) -> Tensor:
        """Values at 0, which padded taps have, of the dtype of ``like``: (1, F), or (channels, F) with own grids."""
        return self(like.new_zeros(1))

    def init_weight(self, weight: Tensor, fan_in: int) -> None:
        """Initialise coefficients (out, in, F, ...) so that the sum over ``fan_in`` inputs has about unit variance."""
        nn.init.normal_(weight, std=1 / math.sqrt(fan_in * self.num_functions))
