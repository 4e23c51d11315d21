"""The hooks of KAN layers by the name of the module in which they stood."""

from .grid_update_hook import KANGridUpdateHook
from .regularization_hook import KANRegularizationHook

__all__ = ['KANGridUpdateHook', 'KANRegularizationHook']
