from .balanced_subset import balanced_subset
from .cached import CachedDataset, keep_batch

__all__ = ['CachedDataset', 'balanced_subset', 'keep_batch']
