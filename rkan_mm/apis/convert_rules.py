"""Names of parameters elsewhere and in mm, as rules: of the RKAN reference, of torchvision and of timm."""

from __future__ import annotations

import re
from collections.abc import Callable

Replacement = str | Callable[[re.Match], str]
Rules = tuple[tuple[str, Replacement | tuple[Replacement, ...]], ...]


def _less_one(template: str) -> Replacement:
    """Fill in the groups of a match, which count from 1, counted from 0."""
    return lambda match: template.format(*(int(group) - 1 for group in match.groups()))


def _third(template: str) -> Replacement:
    """Fill in the group of a match, which counts convolution, norm and activation one by one, counted by threes."""
    return lambda match: template.format(int(match[1]) // 3)


# torchvision's Faster and Mask R-CNN with FPN, of which the reference's detectors are made. Some zeros are new in
# version 0.13.
DETECTORS: Rules = (
    (r'^backbone\.body\.', ''),
    (r'^backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(?=weight|bias)', r'neck.lateral_convs.\1.conv.'),
    (r'^backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(?=weight|bias)', r'neck.fpn_convs.\1.conv.'),
    (r'^rpn\.head\.conv\.(?:0\.0\.)?(?=weight|bias)', 'rpn_head.rpn_conv.'),
    (r'^rpn\.head\.cls_logits\.', 'rpn_head.rpn_cls.'),
    (r'^rpn\.head\.bbox_pred\.', 'rpn_head.rpn_reg.'),
    (r'^roi_heads\.box_head\.fc([67])\.', lambda match: f'roi_head.bbox_head.shared_fcs.{int(match[1]) - 6}.'),
    (r'^roi_heads\.box_predictor\.cls_score\.', 'roi_head.bbox_head.fc_cls.'),
    (r'^roi_heads\.box_predictor\.bbox_pred\.', 'roi_head.bbox_head.fc_reg.'),
    (r'^roi_heads\.mask_head\.(\d)\.0\.', r'roi_head.mask_head.convs.\1.conv.'),
    (r'^roi_heads\.mask_head\.mask_fcn(\d)\.', _less_one('roi_head.mask_head.convs.{}.conv.')),
    (r'^roi_heads\.mask_predictor\.conv5_mask\.', 'roi_head.mask_head.upsample.'),
    (r'^roi_heads\.mask_predictor\.mask_fcn_logits\.', 'roi_head.mask_head.conv_logits.'),
)
# What torchvision's 91 classes of COCO have beside the 80 and the background.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# Names there -> in mm's backbones (and `fc` for the classifier), all rules in turn. Where a rule has several
# replacements, the one that the model at hand has is taken: mm's layouts differ as well.
TORCHVISION: Rules = (
    *DETECTORS,
    (r'^stem\.0\.', 'conv1.'),  # RegNet
    (r'^stem\.1\.', 'bn1.'),
    (r'^trunk_output\.block\d\.block(\d)-(\d+)\.', r'layer\1.\2.'),
    (r'\.proj\.', '.downsample.'),
    (r'\.f\.([abc])\.0\.', lambda match: f'.conv{"abc".index(match[1]) + 1}.'),
    (r'\.f\.([abc])\.1\.', lambda match: f'.bn{"abc".index(match[1]) + 1}.'),
    (r'\.f\.se\.', '.se.'),
    (r'\.se\.fc1\.', '.se.squeeze.'),
    (r'\.se\.fc2\.', '.se.excite.'),
    (r'^features\.conv0\.', 'stem.0.'),  # DenseNet
    (r'^features\.norm0\.', 'stem.1.'),
    (r'^features\.denseblock(\d)\.denselayer(\d+)\.', _less_one('stages.{}.block.{}.')),
    (r'(\.block\.\d+\.(?:norm|conv))\.(\d)\.', r'\1\2.'),  # in torchvision's files
    (r'^features\.transition(\d)\.', _less_one('transitions.{}.')),
    (r'^features\.norm5\.', 'transitions.3.0.'),
    (r'^classifier\.', 'fc.'),
)
TIMM: Rules = (
    *TORCHVISION,
    (r'^stem\.conv\.', 'conv1.'),  # RegNet
    (r'^stem\.bn\.', 'bn1.'),
    (r'^s(\d)\.b(\d+)\.', lambda match: f'layer{match[1]}.{int(match[2]) - 1}.'),
    (r'\.conv(\d)\.conv\.', (r'.conv\1.', r'.conv\1.conv.')),
    (r'\.conv(\d)\.bn\.', r'.bn\1.'),
    (r'\.downsample\.conv\.', '.downsample.0.'),
    (r'\.downsample\.bn\.', '.downsample.1.'),
    (r'^head\.fc\.', 'fc.'),
    (r'^conv1\.([036])\.', (_third('stem.{}.conv.'), r'stem.\1.')),  # ResNet-D, in mmpretrain and mmdet
    (r'^conv1\.([14])\.', (_third('stem.{}.bn.'), r'stem.\1.')),
    (r'^bn1\.', ('bn1.', 'stem.2.bn.', 'stem.7.')),
    (r'^(layer1\.0\.downsample)\.1\.', (r'\1.1.', r'\1.0.')),
    (r'^(layer1\.0\.downsample)\.2\.', (r'\1.2.', r'\1.1.')),
    (r'\.se\.conv\.', '.eca.conv.'),
)
# Stages are numbered from 0, and each part of all blocks is in a list.
RESIDUALKAN: Rules = (
    (r'^backbone\.body\.', ''),
    (r'^conv_reduce\.(\d)\.', r'bridges.\1.block.reduce.'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.polynomial_weight$', r'bridges.\2.block.kan\1.weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.scaler$', r'bridges.\2.block.kan\1.scaler'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.base_linear\.weight$', r'bridges.\2.block.kan\1.base_weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.base_linear\.bias$', r'bridges.\2.block.kan\1.bias'),  # RBFs
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.spline_linear\.weight$', r'bridges.\2.block.kan\1.weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.rbf\.(grid|inv_width)$', r'bridges.\2.block.kan\1.basis.\3'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.spline_weight$', r'bridges.\2.block.kan\1.weight'),  # B-splines
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.spline_scaler$', r'bridges.\2.block.kan\1.scaler'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.base_weight$', r'bridges.\2.block.kan\1.base_weight'),
    (r'^kan_conv([12])\.(\d)\.convs\.0\.conv\.grid$', r'bridges.\2.block.kan\1.basis.grid'),
    (r'^kan_bn\.(\d)\.', r'bridges.\1.block.norm1.'),
    (r'^conv_expand\.(\d)\.', r'bridges.\1.block.expand.'),
    (r'^kan_expand_bn\.(\d)\.', r'bridges.\1.block.norm2.'),
    (r'^conv_shortcut\.(\d)\.', r'bridges.\1.block.shortcut.0.'),
    (r'^shortcut_bn\.(\d)\.', r'bridges.\1.block.shortcut.1.'),
    (r'^gate_convs\.(\d)\.', r'bridges.\1.fusion.gate.'),
    (r'^se_blocks\.(\d)\.1\.', r'bridges.\1.fusion.squeeze.'),
    (r'^se_blocks\.(\d)\.3\.', r'bridges.\1.fusion.excite.'),
    (r'^stem\.([036])\.', (_third('deep_stem.{}.conv.'), r'deep_stem.\1.')),  # ResNet-D, in mmpretrain and mmdet
    (r'^stem\.([14])\.', (_third('deep_stem.{}.bn.'), r'deep_stem.\1.')),
    (r'^bn_final\.', 'norm2.'),
    (r'^(layer\d\.\d+)\.bn(\d)\.', (r'\1.bn\2.', r'\1.norm\2.')),
    (r'^(?:resnet|resnext|wideresnet|regnet|densenet)\.', ''),
    *TORCHVISION,
    (r'^conv1\.', ('conv1.', 'stem.conv.')),  # the second for ResNeSt
    (r'^bn1\.', ('bn1.', 'stem.bn.', 'stem.2.bn.', 'stem.7.', 'norm1.')),  # ResNeSt, ResNet-D in both mm, PyramidNet
    (r'^(layer\d\.0\.downsample)\.0\.', (r'\1.0.', r'\1.1.')),  # ResNeSt
    (r'^(layer\d\.0\.downsample)\.1\.', (r'\1.1.', r'\1.2.')),
    (r'^deep_stem\.', 'stem.'),
    (r'\.cbam\.channel_attention\.fc\.', '.cbam.mlp.'),
    (r'\.cbam\.spatial_attention\.conv\.', '.cbam.spatial.'),
    (r'\.gc_block\.context_modeling\.', '.context_block.conv_mask.'),
    (r'\.gc_block\.transform\.', '.context_block.channel_add_conv.'),
    (r'\.sa\.c(weight|bias)$', r'.shuffle_attention.channel_\1'),
    (r'\.sa\.s(weight|bias)$', r'.shuffle_attention.spatial_\1'),
    (r'\.sa\.gn\.', '.shuffle_attention.spatial_norm.'),
    (r'\.ela\.gn\.', '.ela.norm.'),
)
PLAIN = dict(torchvision=TORCHVISION, timm=TIMM)
