"""The page of a trained model: everything that is looked at, one section after the other."""

from .study import SECTIONS, Options, Study
from .write import look

__all__ = ['SECTIONS', 'Options', 'Study', 'look']
