"""RegNetY alone; `test_parity` compares it with the reference."""

import pickle

import pytest
import torch
from torch import nn
from torchvision.models import regnet

from rkan_mm.models.backbones.regnet_y import ARCHS, RegNetY
from rkan_mm.registry import MODELS

TINY = dict(w0=8, wa=8.0, wm=2.0, group_w=4, depth=5, bot_mul=1.0)


@pytest.mark.parametrize('arch', ARCHS)
def test_widths_and_depths_are_torchvisions(arch, quick_build):
    model = RegNetY(arch)
    cfg = ARCHS[arch]
    theirs = regnet.BlockParams.from_init_params(cfg['depth'], cfg['w0'], cfg['wa'], cfg['wm'], cfg['group_w'])
    assert (model.stage_widths, model.stage_blocks) == (theirs.widths, theirs.depths)
    assert [getattr(model, name)[0].conv2.groups for name in model.res_layers] == \
        [width // group for width, group in zip(theirs.widths, theirs.group_widths, strict=True)]


def test_the_registry_builds_it_with_mms_arguments():
    model = MODELS.build(dict(type='RegNetY', arch=TINY, strides=(2, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2),
                              frozen_stages=1, norm_eval=True, norm_cfg=dict(type='BN', eps=1e-3)))
    assert [out.shape[1:] for out in model(torch.rand(2, 3, 64, 64))] == [(8, 16, 16), (32, 4, 4)]
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert all(p.requires_grad for p in model.layer2[0].se.parameters())
    assert model.layer2[0].se.squeeze.out_channels == 2  # a quarter of the 8 channels that the block takes in
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert isinstance(pickle.loads(pickle.dumps(model)), RegNetY)


def test_unknown_arch():
    with pytest.raises(ValueError, match="RegNetY: no arch '4gf'; there are 400mf, 800mf, 1.6gf"):
        RegNetY('4gf')
