"""What is checked before a run begins: config, data, annotations, labels and weights."""

from rkan_mm.engine.run_error import PreflightError

from .checks import check, check_checkpoint, check_fit, load_weights

__all__ = ['PreflightError', 'check', 'check_checkpoint', 'check_fit', 'load_weights']
