"""What goes wrong when a model is to leave."""

from __future__ import annotations

from rkan_mm.engine.run_error import PreflightError


class UnsupportedModelError(PreflightError):
    """A model has a part for which there is no form to export."""
