"""Warnings that must not be missed: in red, beside the result."""

from __future__ import annotations

from mmengine.dist import is_main_process
from rich.console import Console


def warn_in_red(text: str | None) -> None:
    """Print what the user must know of a result beside it; None is nothing."""
    if text and is_main_process():
        Console(highlight=False, soft_wrap=True).print(f'WARNING: {text}', style='bold red', markup=False)
