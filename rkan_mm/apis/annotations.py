"""Where the check of annotations stood in 0.1.0."""

from rkan_mm.preflight.annotations import check_annotations

__all__ = ['check_annotations']
