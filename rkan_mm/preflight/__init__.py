"""What is checked before a run begins: config, data, annotations, labels and weights."""

from rkan_mm.engine.run_error import PreflightError

from .checks import check, check_checkpoint, load_weights
from .weights import check_fit, load_for_testing

__all__ = ['PreflightError', 'check', 'check_checkpoint', 'check_fit', 'load_for_testing', 'load_weights']
