"""Small nets as one file of C99 that depends on nothing."""

from .source import c_source

__all__ = ['c_source']
