"""Lists of pictures and their labels, for mmpretrain's CustomDataset: lines that it would not take as meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.fileio import list_from_file

from rkan_mm.engine.run_error import PreflightError

from .config import is_mm, kind
from .faults import Faults
from .images import PICTURES
from .red import warn_in_red

BOM = '\ufeff'
PLAIN = re.compile(rf'[^\s,{BOM}]+ \d+')
"""Nearly all lines of a list with labels, of which there may be a million."""

PICTURE = rf'(?i:{"|".join(map(re.escape, PICTURES))})'
LINE = 'write path, space, number of the class, as in cat/1.jpg 0'


def check_list(dataset: dict, cls: Callable | None) -> None:
    """Raise `PreflightError` if lines of an ``ann_file`` on the disk are no path with the number of a class.

    Args:
        dataset: its config.
        cls: what that builds. Data sets that read their lists otherwise are left alone.
    """
    reads: Any = next((base for base in getattr(cls, '__mro__', ()) if base.__name__ == 'CustomDataset'), None)
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    if reads is None or not is_mm(reads) or cls.load_data_list is not reads.load_data_list:  # type: ignore[union-attr]
        return
    split = dataset.get('split') if kind(dataset).startswith('ImageNet') else None
    path = Path(str(dataset.get('data_root') or ''), str(dataset.get('ann_file') or (
        f'meta/{split}.txt' if split else ''))).expanduser()
    if backend != 'local' or not path.is_file():
        return
    try:
        lines = path.read_text('utf-8').split('\n')
    except UnicodeDecodeError as error:
        raise PreflightError(f'{kind(dataset)}: {str(path)!r} is no text in UTF-8 ({error}): save it as such.'
                             ) from error
    faults, labelled = Faults(str(path)), dataset.get('with_label', True) and split != 'test'
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        if fault := (_of_labelled if labelled else _of_path)(line.rstrip('\r')):
            faults.add(fault[0], f'line {number} ({line.strip()[:80]!r})', fault[1])
    faults.stop()


def _of_path(line: str) -> tuple[str, str] | None:
    """What is wrong with a line of a list without labels, and the cure."""
    if line.startswith(BOM):
        return 'begins with a byte order mark, which would be part of the path', 'save the file as UTF-8 without BOM'
    if not line.strip():
        return 'is empty', 'take it out'
    if re.search(rf'{PICTURE}[ \t,]+-?\d+$', line):
        return 'has a number behind the path, which would be part of it', 'take it out, or set with_label=True'
    return None


def _of_labelled(line: str) -> tuple[str, str] | None:
    if PLAIN.fullmatch(line):
        return None
    text = line.strip()
    path, _, label = text.rpartition(' ')
    if line.startswith(BOM) or not text:
        return _of_path(line)
    if re.search(rf'{PICTURE}([ \t,]+-?\d+)+$', path):
        return ('has several numbers behind the path, and all but the last would be part of it',
                'write one, or take MultiLabelDataset with its json')
    if path and re.fullmatch(r'[+-]?\d+', label):
        return None
    if re.search(r'[\t,;]\s*-?\d+$', text):
        return 'has no space before its number', LINE
    return 'ends in no number of a class', f'{LINE}; without labels set with_label=False'


def tell_names(dataset: dict) -> None:
    """Warn in red of lines that are no name in a file of names of classes, which is ``classes`` of a data set."""
    path = Path(dataset['classes']).expanduser() if isinstance(dataset.get('classes'), str) else None
    if path is None or not path.is_file():
        return
    for number, name in enumerate(list_from_file(str(path)), 1):
        if not name.strip() or name.startswith(BOM):
            warn_in_red(f'{kind(dataset)}: line {number} of {str(path)!r} is no name of a class, but {name!r}: take '
                        'out empty lines, and save it as UTF-8 without BOM.')
