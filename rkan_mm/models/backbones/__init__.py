from .rkanet import RKANet

__all__ = ['RKANet']
