"""Data sets that mm lacks, and what is laid around others: subsets, caches, the drawn shapes of the demo."""

from .balanced_subset import balanced_subset
from .cached import CachedDataset, keep_batch
from .classification import caltech256, svhn, tiny_imagenet

__all__ = ['CachedDataset', 'balanced_subset', 'caltech256', 'keep_batch', 'svhn', 'tiny_imagenet']
