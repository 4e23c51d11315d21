"""What a run was made of: the fingerprint of its data, the commit of its code and the processor."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rkan_mm.spread import spread

SAMPLED = 2000  # entries that are looked at, evenly spaced over a data set
INSTANCE = ('bbox', 'bbox_label', 'ignore_flag', 'mask')  # the same in all versions of mmdet


def fingerprint(dataset: Any) -> str | None:
    """Twelve hexadecimal digits that change with the pictures and labels of a data set, not with where it lies.

    It covers the number of entries and, of 2,000 evenly spaced ones (all, where there are fewer), labels, boxes and
    masks and the bytes of the image file: any picture more or less shows, one changed label among a million may not.

    Args:
        dataset: a data set of mm, or a wrapper around one.

    Returns:
        None for a data set without ``get_data_info``.
    """
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        return None
    length = len(dataset)
    digest = hashlib.sha256(f'{length}'.encode())
    for index in spread(length, SAMPLED):
        for part in _parts(dataset.get_data_info(index)):
            digest.update(len(part).to_bytes(8, 'big') + part)
    return digest.hexdigest()[:12]


def _parts(info: dict) -> Iterator[bytes]:
    """What stands in one entry of a data set, piece by piece."""
    paths = info.get('img_path')
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:  # some data sets have pairs, or videos
        if path is not None:
            yield Path(path).name.encode()
            if '://' not in str(path) and Path(path).is_file():
                yield Path(path).read_bytes()
    for name in ('img', 'gt_label'):
        if name in info:
            yield _plain(info[name])
    for instance in info.get('instances', ()):
        yield from (_plain(instance[name]) for name in INSTANCE if name in instance)


def _plain(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.ndim > 1:  # an image
        return str(value.shape).encode() + value.tobytes()
    return repr(value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value).encode()


def commit() -> str | None:
    """Commit of this package's checkout, with ``-dirty`` where tracked files differ from it.

    Those that a table writes while it runs do not count: records, plots, pages and metafiles.

    Outside of a checkout, as in a copy of one on another machine, it is what the environment's ``RKAN_MM_REVISION``
    says, or None.
    """
    git = ['git', '-C', str(Path(__file__).parent)]
    try:
        subprocess.run([*git, 'ls-files', '--error-unmatch', Path(__file__).name], check=True, capture_output=True)
        clean = subprocess.run([*git, 'describe', '--always', '--abbrev=12', '--exclude=*'], check=True,
                               capture_output=True, text=True).stdout.strip()
        written = [f':(top,exclude)*{name}' for name in ('.csv', '.md', '.png', 'metafile.yml')]
        changed = subprocess.run([*git, 'diff', '--quiet', 'HEAD', '--', ':(top)', *written], capture_output=True)
        return f'{clean}-dirty' if changed.returncode else clean
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get('RKAN_MM_REVISION') or None


def processor() -> str:
    """The name of this machine's processor, such as 'AMD EPYC'; 'CPU' where nothing tells it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return (names or [platform.processor()])[0] or 'CPU'
