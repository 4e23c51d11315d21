from . import backbones, layers
from .backbones import *  # noqa: F403
from .heads import kan_linear_cls_head
from .layers import *  # noqa: F403
from .rkan_block import RKANBlock

__all__ = ['RKANBlock', 'kan_linear_cls_head', *backbones.__all__, *layers.__all__]
