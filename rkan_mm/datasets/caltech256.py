"""Caltech-256 for mmpretrain. It imports mmpretrain, and is imported when it is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmpretrain.datasets import CustomDataset

ADDRESS = 'https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar'


class Caltech256(CustomDataset):
    """Caltech-256 (https://data.caltech.edu/records/nyy15-4j048): 30607 images of 256 classes and clutter.

    It has no official split. Here the images, in the order of their paths, are shuffled by
    ``numpy.random.default_rng(seed)``; the first 80 % are for training.

    Args:
        data_root: folder of the class folders, ``001.ak47`` and so on.
        split: ``'train'`` (80 %) or ``'test'``.
        seed: of the split.
        kwargs: of mmpretrain's ``CustomDataset``.

    Raises:
        ValueError: unknown ``split``.
        FileNotFoundError: no such folder.
    """

    def __init__(self, data_root: str = 'data/256_ObjectCategories/', split: str = 'train', seed: int = 0,
                 **kwargs) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f'Caltech256: no split {split!r}; there are train, test')
        self.split, self.seed = split, seed
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(f'Caltech256: there is no folder {root}. Get it with: wget -P {root.parent} '
                                    f'{ADDRESS} && tar -C {root.parent} -xf {root.parent / Path(ADDRESS).name}')
        images = super().load_data_list()
        order = np.random.default_rng(self.seed).permutation(len(images))
        count = round(0.8 * len(images))
        return [images[i] for i in sorted(order[:count] if self.split == 'train' else order[count:])]
