"""Models out of the lab: rewritten for tracing, exported, quantised, and as plain C."""

from .rewrites import exportable

__all__ = ['exportable']
