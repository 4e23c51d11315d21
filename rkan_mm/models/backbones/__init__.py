"""Backbones: RKANet around any other, attention in any ResNet, and families that mm lacks."""

from torch import nn

from rkan_mm.registry import MODELS

from .convnet import ConvNet
from .enhanced_feature_extractor import EnhancedFeatureExtractor
from .plugged import plugged_backbone
from .pyramidnet import PyramidNet
from .rkanet import RKANet

__all__ = ['ConvNet', 'EnhancedFeatureExtractor', 'PyramidNet', 'RKANet', 'build_regnet_y', 'plugged_backbone']


@MODELS.register_module('RegNetY')
def build_regnet_y(**kwargs) -> nn.Module:
    """`RegNetY`, whose module imports mmpretrain."""
    from .regnet_y import RegNetY
    return RegNetY(**kwargs)
