"""Kernels of the layers, in C++ for CPUs and Triton for GPUs, the same in plain PyTorch, and the gate before them."""

from .compiled import load_kernels
from .expand import Functions, can_expand, expand
from .fused import fused_conv2d, fused_is_wanted, tf32_allowed
from .gate import (
    FLOATS,
    HALF,
    SameForm,
    autocast_dtype,
    fingerprint,
    has_hooks,
    is_recorded,
    is_transformed,
    is_watched,
    pointer,
    readable,
    refuse_freed,
    refuse_numbers_to_meta,
)
from .shared_polynomial_conv import Norm, activated_polynomial_conv2d, shared_polynomial_conv2d
from .shared_polynomial_conv_torch import identity, in_each, shared_polynomial_conv2d_torch
from .spline_conv import MAX_OUTPUTS as SPLINE_CONV_OUTPUTS
from .spline_conv import can_spline_conv, fits_spline_conv, spline_conv2d
from .tracing import as_constant, as_type_of, folded, static_shape

__all__ = [
    'FLOATS', 'HALF', 'SPLINE_CONV_OUTPUTS', 'Functions', 'Norm', 'SameForm', 'activated_polynomial_conv2d',
    'as_constant', 'as_type_of', 'autocast_dtype', 'can_expand', 'can_spline_conv', 'expand', 'fingerprint',
    'fits_spline_conv', 'folded', 'fused_conv2d', 'fused_is_wanted', 'has_hooks', 'identity', 'in_each', 'is_recorded',
    'is_transformed', 'is_watched', 'load_kernels', 'pointer', 'readable', 'refuse_freed', 'refuse_numbers_to_meta',
    'shared_polynomial_conv2d', 'shared_polynomial_conv2d_torch', 'spline_conv2d', 'static_shape', 'tf32_allowed',
]
