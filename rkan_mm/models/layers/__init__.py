from .basis import Chebyshev, Hermite, Jacobi, Legendre, Polynomial
from .fusion import Addition, Gating, SEFusion
from .shared_kan_conv import SharedKANConv2d

__all__ = [
    'Addition', 'Chebyshev', 'Gating', 'Hermite', 'Jacobi', 'Legendre', 'Polynomial', 'SEFusion', 'SharedKANConv2d',
]
