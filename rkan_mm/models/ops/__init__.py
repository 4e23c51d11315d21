from .shared_polynomial_conv import shared_polynomial_conv2d

__all__ = ['shared_polynomial_conv2d']
