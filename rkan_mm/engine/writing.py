"""Whether a file could be written, asked before the work is done whose result it is to hold; and what goes into it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def plain(node: Any) -> Any:
    """Figures as json and yaml take them: metrics may give tensors and arrays, as of confusion."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return node.tolist() if isinstance(node, (torch.Tensor, np.ndarray, np.generic)) else node


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
