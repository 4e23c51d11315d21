"""Pages keep what they promise: backbones are built, commands parse, links lead somewhere."""

import re

import pytest
from conftest import ROOT

from rkan_mm.models import RKANBlock, RKANet

HRNET_W18 = dict(
    stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(4,), num_channels=(64,)),
    stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(4, 4), num_channels=(18, 36)),
    stage3=dict(num_modules=4, num_branches=3, block='BASIC', num_blocks=(4,) * 3, num_channels=(18, 36, 72)),
    stage4=dict(num_modules=3, num_branches=4, block='BASIC', num_blocks=(4,) * 4, num_channels=(18, 36, 72, 144)))
BACKBONES = re.findall(r'^\| `(dict\(type=.*?\))`.*?\| `(\(.*?\))` \|$',
                       (ROOT / 'docs/your-backbone.md').read_text(), re.MULTILINE)


def test_the_page_has_the_families():
    assert len(BACKBONES) >= 15


@pytest.mark.parametrize(('backbone', 'stages'), BACKBONES)
def test_each_backbone_of_the_page_takes_a_block(backbone, stages, quick_build):
    names = dict(dict=dict, HRNET_W18=HRNET_W18)
    cfg = eval(backbone, {'__builtins__': {}}, names)
    size = (224, 224) if 'Swin' in cfg['type'] else (64, 64)
    model = RKANet(backbone=cfg, stages=eval(stages, {'__builtins__': {}}), input_size=size)
    (bridge,) = model.bridges.values()
    assert isinstance(bridge.block, RKANBlock)
