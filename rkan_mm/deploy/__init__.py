"""Models out of the lab: rewritten for tracing, exported, quantised."""

from .rewrites import exportable

__all__ = ['exportable']
