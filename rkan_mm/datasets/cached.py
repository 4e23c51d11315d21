"""A data set kept in memory, for models so small that reading an image takes longer than learning from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dataset import BaseDataset, force_full_init
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS
from mmengine.structures import BaseDataElement

from rkan_mm.registry import DATASETS

TRIES = 16
"""Images, evenly spread, that are made twice."""


@DATASETS.register_module()
@MMENGINE_DATASETS.register_module()
class CachedDataset:
    """Runs the pipeline of another data set once and keeps what it gives, all images in one tensor.

    For pipelines without randomness, that give every image the same size. A batch is then one indexing operation, if
    the dataloader takes it as it comes: ``collate_fn=dict(type='keep_batch')``.

    Args:
        dataset: config of a data set, or one.
        lazy_init: whether to wait with the images until they are asked for.

    Raises:
        ValueError: at initialisation, if the images differ in shape, or come out otherwise the next time.
    """

    def __init__(self, dataset: dict | BaseDataset, lazy_init: bool = False) -> None:
        self.dataset = MMENGINE_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        self.dataset.full_init()
        results = [self.dataset[i] for i in range(len(self.dataset))]
        shapes = {tuple(result['inputs'].shape) for result in results}
        if len(shapes) != 1:
            raise ValueError(f'CachedDataset: the pipeline of {type(self.dataset).__name__} must give all images one '
                             f'shape, got {sorted(shapes)[:5]}')
        for i in range(TRIES):
            place = i * len(results) // TRIES
            if not np.array_equal(self.dataset[place]['inputs'], results[place]['inputs'], equal_nan=True):
                raise ValueError(f'CachedDataset: the pipeline of {type(self.dataset).__name__} gives image {place} in '
                                 'another form each time, and only the first would be kept: leave its random steps '
                                 "out, or take them for the batch (model.train_cfg.augments=dict(type='CropAndFlip'))")
        self.inputs = torch.stack([result['inputs'] for result in results])  # (N, C, H, W)
        self.data_samples = [result['data_samples'] for result in results]
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        return self.dataset.get_data_info(idx)

    @force_full_init
    def __len__(self) -> int:
        return len(self.data_samples)

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return dict(inputs=self.inputs[idx], data_samples=_copy(self.data_samples[idx]))

    def __getitems__(self, indices: Sequence[int]) -> _Batch:
        """For dataloaders: the samples, of which `keep_batch` takes the whole batch at once."""
        return _Batch(self, indices)


class _Batch(Sequence):
    """The samples of a batch, read one by one or at once."""

    def __init__(self, dataset: CachedDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i):
        return self.dataset[self.indices[i]]

    @property
    def batch(self) -> dict:
        return dict(inputs=self.dataset.inputs[torch.as_tensor(self.indices)],
                    data_samples=[_copy(self.dataset.data_samples[i]) for i in self.indices])


@FUNCTIONS.register_module()
def keep_batch(batch: _Batch) -> dict:
    """The ``collate_fn`` for `CachedDataset`: images of a batch in one tensor (B, C, H, W), samples in a list."""
    if not isinstance(batch, _Batch):
        raise TypeError(f'keep_batch: needs a CachedDataset as the outermost data set, got {type(batch).__name__} of '
                        f'{type(batch[0]).__name__}')
    return batch.batch


def _copy(sample: BaseDataElement) -> BaseDataElement:
    """As ``sample.clone()``, sharing tensors as it does, in a tenth of its time."""
    copy = object.__new__(type(sample))
    copy.__dict__.update((name, set(value) if isinstance(value, set) else value)
                         for name, value in sample.__dict__.items())
    return copy
