"""Whether a file could be written, asked before the work is done whose result it is to hold."""

from __future__ import annotations

import tempfile
from pathlib import Path


def why_not_written(folder: Path) -> str | None:
    """The reason why no file can be written below a folder, which need not be there yet; None if one can.

    Nothing is made.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
