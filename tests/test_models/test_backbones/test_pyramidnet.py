"""PyramidNet alone; `test_parity` compares it with the reference."""

import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import PyramidNet

ALL = (0, 1, 2, 3)


def tiny(**args):
    usual = dict(depth=50, alpha=8, stage_blocks=(1, 1, 1, 1), stem_channels=8, out_indices=ALL)
    return PyramidNet(**{**usual, **args})


@pytest.mark.parametrize(('depth', 'channels'), [
    (18, (76, 88, 100, 112)), (34, (73, 85, 103, 112)), (50, (408, 608, 904, 1056)), (101, (356, 484, 1236, 1336)),
    (152, (320, 492, 1272, 1336)), (200, (300, 648, 1172, 1216)),
])
def test_widths_of_the_reference(depth, channels, quick_build):
    model = PyramidNet(depth)
    assert tuple(getattr(model, name)[-1].out_channels for name in model.res_layers) == channels


@pytest.mark.parametrize(('args', 'shapes'), [
    ({}, [(40, 17), (48, 9), (56, 5), (64, 3)]),
    (dict(stem='cifar'), [(40, 65), (48, 33), (56, 17), (64, 9)]),
    (dict(depth=18), [(10, 17), (12, 9), (14, 5), (16, 3)]),
    (dict(stem='cifar', stage_blocks=(2, 1, 1), out_indices=(0, 2)), [(48, 65), (64, 17)]),
], ids=str)
def test_shapes_on_odd_maps(args, shapes):
    outs = tiny(**args)(torch.rand(2, 3, 65, 65))
    assert [out.shape[1:] for out in outs] == [(channels, size, size) for channels, size in shapes]


def test_block_by_hand():
    block = tiny().eval().layer2[0]
    x = torch.rand(2, 40, 9, 9)
    out = block.conv1(block.norm1(x))
    out = block.conv2(block.norm2(out).relu())
    out = block.norm4(block.conv3(block.norm3(out).relu()))
    out[:, :40] += nn.functional.avg_pool2d(x, 2, 2, ceil_mode=True)
    assert_close(block(x), out)


def test_frozen_stages_and_norm_eval():
    model = tiny(frozen_stages=2, norm_eval=True).train()
    frozen = {name.split('.')[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'norm1', 'layer1', 'layer2'}
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.requires_grad for p in tiny().parameters())


def test_norm_cfg_and_init():
    model = tiny(norm_cfg=dict(type='GN', num_groups=1), stem_channels=8)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    model.init_weights()
    weight = model.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9))**0.5, rel=0.1)


def test_checkpointing_keeps_values_and_gradients():
    model, other = tiny().eval(), tiny(with_cp=True).eval()
    other.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 32, 32)
    for m in (model, other):
        m(x)[-1].sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert_close(a.grad, b.grad)


@pytest.mark.parametrize(('args', 'message'), [
    (dict(depth=51), 'PyramidNet: no depth 51; there are 18, 34, 50, 101, 152, 200'),
    (dict(stem='deep'), "PyramidNet: no stem 'deep'; there are 'imagenet', 'cifar'"),
    (dict(out_indices=(4,)), 'PyramidNet: out_indices (4,) of 4 stages'),
], ids=str)
def test_errors(args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny(**args)
