"""Tiny ImageNet for mmpretrain. It imports mmpretrain, and is imported when it is built."""

from __future__ import annotations

from pathlib import Path

from mmpretrain.datasets import BaseDataset

ADDRESS = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
EXTENSIONS = ('.jpeg', '.jpg', '.png')


class TinyImageNet(BaseDataset):
    """Tiny ImageNet, 200 classes of ImageNet at 64 x 64, as its archive has it or sorted into class folders.

    Training images are ``train/<wnid>/images/*.JPEG`` or ``train/<wnid>/*.JPEG``; those for validation
    ``val/images/*.JPEG`` with ``val/val_annotations.txt``, or ``val/<wnid>/*.JPEG``. Classes are the folders of
    ``train`` in alphabetical order.

    Args:
        data_root: folder of ``train`` and ``val``.
        split: ``'train'`` or ``'val'``; the labels of the test images are not public.
        kwargs: of mmpretrain's ``BaseDataset``.

    Raises:
        ValueError: unknown ``split`` or class; a class without images.
        FileNotFoundError: a folder or an annotated image is not there.
    """

    def __init__(self, data_root: str = 'data/tiny-imagenet-200/', split: str = 'train', **kwargs) -> None:
        if split not in ('train', 'val'):
            raise ValueError(f'TinyImageNet: no split {split!r}; there are train, val')
        self.split = split
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        root = Path(self.data_root)
        for folder in (root / 'train', root / self.split):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f'TinyImageNet: there is no folder {folder}. Get it with: wget -P {root.parent} {ADDRESS} && '
                    f'unzip -q {root.parent / Path(ADDRESS).name} -d {root.parent}')
        classes = sorted(folder.name for folder in (root / 'train').iterdir() if folder.is_dir())
        self._metainfo.setdefault('classes', tuple(classes))
        found = self._annotated(root / 'val') if self.split == 'val' and any((root / 'val/images').glob('*')) \
            else self._sorted(root / self.split)
        data_list = []
        for path, name, source in found:
            if name not in classes:
                raise ValueError(f'TinyImageNet: {source} has the class {name!r}, which is none of the {len(classes)} '
                                 f'in {root / "train"}: {", ".join(classes[:3])}, ...')
            data_list.append(dict(img_path=str(path), gt_label=classes.index(name)))
        if empty := sorted(set(classes) - {name for _, name, _ in found}):
            raise ValueError(f'TinyImageNet: no images of {", ".join(empty)} in {root / self.split}')
        return data_list

    @staticmethod
    def _sorted(folder: Path) -> list[tuple[Path, str, Path]]:
        """Image, class and where it says so, of a folder of class folders."""
        images = (path for path in sorted(folder.glob('*/**/*')) if path.suffix.lower() in EXTENSIONS)
        return [(path, path.relative_to(folder).parts[0], path) for path in images]

    @staticmethod
    def _annotated(folder: Path) -> list[tuple[Path, str, Path]]:
        """The same of the archive's validation images."""
        table = folder / 'val_annotations.txt'
        if not table.is_file():
            raise FileNotFoundError(f'TinyImageNet: {folder / "images"} has images, but there is no {table}')
        found = []
        for line in table.read_text().splitlines():
            name, label = line.split('\t')[:2]
            found.append((folder / 'images' / name, label, table))
        there = {path.name for path in (folder / 'images').iterdir()}
        if missing := [path for path, *_ in found if path.name not in there]:
            raise FileNotFoundError(f'TinyImageNet: {len(missing)} images of {table} do not exist, e.g. {missing[0]}')
        return found
