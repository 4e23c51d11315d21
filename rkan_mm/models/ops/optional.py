"""Modules of this package that need Triton."""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def optional_module(name: str) -> Any:
    """A module beside this one; None where there is no Triton."""
    try:
        return importlib.import_module(f'.{name}', __package__)
    except ImportError:
        return None
