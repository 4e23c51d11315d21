from .hooks import KANGridUpdateHook, KANRegularizationHook
from .safe_globals import allow_mmengine_globals
from .summary import RunSummaryHook

__all__ = ['KANGridUpdateHook', 'KANRegularizationHook', 'RunSummaryHook', 'allow_mmengine_globals']
