"""The same number of images of each class."""

from __future__ import annotations

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS as MMENGINE_DATASETS

from rkan_mm.registry import DATASETS


@DATASETS.register_module('BalancedSubset')
@MMENGINE_DATASETS.register_module('BalancedSubset')
def balanced_subset(dataset: dict, per_class: int, offset: int = 0, seed: int = 0) -> BaseDataset:
    """A classification data set cut down to ``per_class`` images of each class, in their old order.

    Args:
        dataset: config of a data set of mmpretrain.
        per_class: images of a class.
        offset: images of a class that are passed over, in an order drawn with ``seed``; so that other subsets, with
            other offsets, have no image of this one.
        seed: of the order.

    Raises:
        ValueError: a class has too few images.
    """
    full = MMENGINE_DATASETS.build(dataset)
    labels = np.asarray(full.get_gt_labels())
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == label))
        if len(images) < offset + per_class:
            raise ValueError(f'BalancedSubset: class {label} of {type(full).__name__} has {len(images)} images, fewer '
                             f'than offset + per_class = {offset} + {per_class}')
        chosen.extend(images[offset:offset + per_class].tolist())
    return full.get_subset(sorted(chosen))
