from .compiled import is_transformed, load_kernels, pointer
from .expand import Functions, can_expand, expand
from .shared_polynomial_conv import shared_polynomial_conv2d
from .shared_polynomial_conv_torch import identity, shared_polynomial_conv2d_torch

__all__ = [
    'Functions', 'can_expand', 'expand', 'identity', 'is_transformed', 'load_kernels', 'pointer',
    'shared_polynomial_conv2d', 'shared_polynomial_conv2d_torch',
]
