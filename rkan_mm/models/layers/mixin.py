"""The base of classes that stand before a layer of PyTorch: to a type checker a module, at run time nothing."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module as LayerMixin
else:
    LayerMixin = object

__all__ = ['LayerMixin']
