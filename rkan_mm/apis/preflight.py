"""Where the checks stood in 0.1.0."""

from rkan_mm.preflight import PreflightError, check, check_checkpoint, check_fit, load_weights

__all__ = ['PreflightError', 'check', 'check_checkpoint', 'check_fit', 'load_weights']
