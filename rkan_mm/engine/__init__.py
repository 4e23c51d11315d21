from .best_and_last import BestAndLastHook
from .hooks import KANGridUpdateHook, KANRegularizationHook
from .safe_globals import allow_mmengine_globals

__all__ = ['BestAndLastHook', 'KANGridUpdateHook', 'KANRegularizationHook', 'allow_mmengine_globals']
