"""What is built from a config: RKAN's block, backbones, heads and KAN layers, with the kernels behind them."""

from . import backbones, layers
from .backbones import *  # noqa: F403
from .heads import kan_linear_cls_head
from .layers import *  # noqa: F403
from .rkan_block import RKANBlock
from .test_time import box_tta_model

__all__ = ['RKANBlock', 'box_tta_model', 'kan_linear_cls_head', *backbones.__all__, *layers.__all__]
