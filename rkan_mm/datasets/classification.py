"""Data sets that mmpretrain lacks. They are subclasses of its own, so it is imported when one is built."""

from __future__ import annotations

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS as MMENGINE_DATASETS

from rkan_mm.registry import DATASETS


@DATASETS.register_module('SVHN')
@MMENGINE_DATASETS.register_module('SVHN')
def svhn(**kwargs) -> BaseDataset:
    """`rkan_mm.datasets.svhn.SVHN`."""
    from .svhn import SVHN
    return SVHN(**kwargs)


@DATASETS.register_module('TinyImageNet')
@MMENGINE_DATASETS.register_module('TinyImageNet')
def tiny_imagenet(**kwargs) -> BaseDataset:
    """`rkan_mm.datasets.tiny_imagenet.TinyImageNet`."""
    from .tiny_imagenet import TinyImageNet
    return TinyImageNet(**kwargs)


@DATASETS.register_module('Caltech256')
@MMENGINE_DATASETS.register_module('Caltech256')
def caltech256(**kwargs) -> BaseDataset:
    """`rkan_mm.datasets.caltech256.Caltech256`."""
    from .caltech256 import Caltech256
    return Caltech256(**kwargs)
