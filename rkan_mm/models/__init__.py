from .backbones import RKANet
from .layers import Addition, Chebyshev, Gating, Hermite, Jacobi, Legendre, SEFusion, SharedKANConv2d
from .rkan_block import RKANBlock

__all__ = [
    'Addition', 'Chebyshev', 'Gating', 'Hermite', 'Jacobi', 'Legendre', 'RKANBlock', 'RKANet', 'SEFusion',
    'SharedKANConv2d',
]
