"""SVHN for mmpretrain. It imports mmpretrain, and is imported when it is built."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torchvision
from mmengine.dist import barrier, is_main_process
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.utils import calculate_md5, download_url

FILES = torchvision.datasets.SVHN.split_list
"""Address, name and md5 of each split's file."""


class SVHN(BaseDataset):
    """The cropped digits of Street View House Numbers (http://ufldl.stanford.edu/housenumbers), 32 x 32 RGB.

    Args:
        data_root: folder of ``train_32x32.mat``, ``test_32x32.mat`` and ``extra_32x32.mat``.
        split: ``'train'`` (73257 images), ``'test'`` (26032) or ``'extra'`` (531131).
        download: whether to download what is not there.
        kwargs: of mmpretrain's ``BaseDataset``.

    Raises:
        ValueError: unknown ``split``; a file that is torn or another.
        FileNotFoundError: no such file, and it is not to be downloaded.
    """

    METAINFO: ClassVar[dict] = dict(classes=tuple('0123456789'))

    def __init__(self, data_root: str = 'data/svhn/', split: str = 'train', download: bool = True, **kwargs) -> None:
        if split not in FILES:
            raise ValueError(f'SVHN: no split {split!r}; there are {", ".join(FILES)}')
        self.split, self.download = split, download
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        address, name, md5 = FILES[self.split]
        path = Path(self.data_root) / name
        if self.download and not path.exists() and is_main_process():
            download_url(address, self.data_root, name, md5)
        barrier()
        how = f'Get it with: wget -P {self.data_root} {address}'
        if not path.is_file():
            raise FileNotFoundError(f'SVHN: {path} does not exist. {how}')
        if (found := calculate_md5(str(path))) != md5:
            raise ValueError(f'SVHN: {path} is torn or another file, of md5 {found} and not {md5}. Delete it. {how}')
        digits = torchvision.datasets.SVHN(self.data_root, self.split)
        images = digits.data.transpose(0, 2, 3, 1)  # (N, 3, 32, 32) -> (N, 32, 32, 3)
        return [dict(img=image, gt_label=int(label)) for image, label in zip(images, digits.labels, strict=True)]
