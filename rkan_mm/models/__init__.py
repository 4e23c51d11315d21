from .backbones import *  # noqa: F403
from .layers import *  # noqa: F403
from .rkan_block import RKANBlock

__all__ = ['RKANBlock', *backbones.__all__, *layers.__all__]  # noqa: F405
