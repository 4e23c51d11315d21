"""Packages of the extra ``rkan_mm[inspect]``: imported when needed, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from rkan_mm.engine.run_error import PreflightError

DISTRIBUTIONS = dict(pytorch_grad_cam='grad-cam')


def require(module: str, purpose: str) -> ModuleType:
    """Import a module of the extra.

    Raises:
        PreflightError: it is not installed; the message says what for and how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition('.')[0] != module.partition('.')[0]:
            raise  # it is there, but something that it needs is not
        package = DISTRIBUTIONS.get(module, module.partition('.')[0])
        raise PreflightError(f"{purpose} needs the package {package}, which is not installed: pip install "
                             f"'rkan_mm[inspect]', or pip install {package}") from error
