from .safe_globals import allow_mmengine_globals

__all__ = ['allow_mmengine_globals']
