from .compiled import load_kernels
from .expand import Functions, can_expand, expand
from .shared_polynomial_conv import shared_polynomial_conv2d

__all__ = ['Functions', 'can_expand', 'expand', 'load_kernels', 'shared_polynomial_conv2d']
