from .hooks import KANGridUpdateHook, KANRegularizationHook
from .safe_globals import allow_mmengine_globals

__all__ = ['KANGridUpdateHook', 'KANRegularizationHook', 'allow_mmengine_globals']
