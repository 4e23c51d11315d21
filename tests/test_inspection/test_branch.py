"""What a block adds to its stage; turning it off and straight, and that nothing is left of it."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage, MMDistributedDataParallel
from torch import nn
from torch.testing import assert_close

from rkan_mm.inspection import Recorder
from rkan_mm.inspection.branch import Branch, BranchRecorder, bridges
from rkan_mm.inspection.swap import at_rest, straightened, without_block, without_functions
from rkan_mm.models import KANLinear, RKANet


def rkanet(fusion: str = 'Addition', stages=('layer3', 'layer4'), depth: int = 18) -> nn.Module:
    backbone = dict(type='mmdet.ResNet', depth=depth, base_channels=8, stem_channels=8, init_cfg=None, norm_eval=False)
    return RKANet(backbone=backbone, stages=stages, fusion=dict(type=fusion))


@pytest.mark.parametrize('fusion', ['Addition', 'Gating', 'SE'])
def test_branch_against_its_definition(fusion):
    model = rkanet(fusion).eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad(), BranchRecorder(model) as recorder:
        expected = model(images[:2])
        model(images[2:])
    with torch.no_grad():
        full = model(images)[3]
        with without_block(model.bridges['layer4']):
            out = model(images)[3]
    found = recorder.branches['bridges.layer4']
    added = full - out
    assert added.abs().max() > 0
    assert found.size == pytest.approx((added.square().mean() / out.square().mean()).sqrt().item(), rel=1e-5)
    assert_close(found.size_by_channel.float(), (added.square().mean((0, 2, 3)) / out.square().mean((0, 2, 3))).sqrt(),
                 rtol=1e-4, atol=1e-4)
    assert found.cosine == pytest.approx(torch.cosine_similarity(out, full, 1).mean().item(), rel=1e-5)
    one, other = (t.movedim(1, -1).flatten(0, -2).double() for t in (out, full))
    scale = (unbiased(one, one) * unbiased(other, other))**0.5
    assert found.cka == pytest.approx(unbiased(one, other) / scale, rel=1e-5)
    assert found.count == 3 * 2 * 3
    assert len(found.maps) == 3
    assert found.maps[0]['share'].shape == (2, 3)
    assert_close(found.maps[2]['with_block'], full[2].mean(0), rtol=1e-4, atol=1e-4)
    assert_close(expected[3], full[:2])


def unbiased(one: torch.Tensor, other: torch.Tensor) -> float:
    """HSIC by its definition in products of places."""
    n = len(one)
    k, m = (t @ t.T * (1 - torch.eye(n)) for t in (one, other))
    return (torch.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()).item()


@pytest.mark.parametrize(('channels', 'side'), [(200, 5), (400, 17)])  # of 17 x 17 places some are drawn, each once
def test_alignment_of_fewer_places_than_channels(channels, side):
    torch.manual_seed(0)
    out, other = torch.randn(2, 4, channels, side, side)
    branch = Branch('stage')
    for one, two in zip(out.split(1), other.split(1), strict=True):
        branch.add(one, two)
    assert abs(branch.cka) < 0.1  # they have nothing in common
    alike = Branch('stage')
    alike.add(out, 3 * out + 7)
    assert alike.cka == pytest.approx(1)
    few = Branch('stage')
    few.add(out[:1, :, :1, :3], out[:1, :, :1, :3])
    assert math.isnan(few.cka)


def test_without_blocks_it_is_the_plain_backbone():
    model = rkanet().eval()
    plain = copy.deepcopy(model.backbone)
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    x = torch.randn(1, 3, 64, 64)
    with without_block(model.bridges['layer3']), without_block(model.bridges['layer4']):
        for one, other in zip(model(x), plain(x), strict=True):
            assert_close(one, other, rtol=0, atol=0)


def state(model: nn.Module) -> dict:
    """All that could be left behind."""
    def plain(value):
        return value.clone() if isinstance(value, torch.Tensor) else value

    return dict(
        tensors={name: (value.clone(), value._version, value.data_ptr(), value.requires_grad)
                 for name, value in [*model.named_parameters(), *model.named_buffers()]},
        grads={name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        modules={name: (module.training, sorted(vars(module)), type(module),
                        {key: len(value) for key, value in vars(module).items() if key.endswith('_hooks')})
                 for name, module in model.named_modules()},
        random=(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))


def assert_same(one: dict, other: dict) -> None:
    assert one['modules'] == other['modules']
    assert one['random'] == other['random']
    for kind in ('tensors', 'grads'):
        for name, value in one[kind].items():
            now = other[kind][name]
            if isinstance(value, tuple):
                assert value[1:] == now[1:], name
                value, now = value[0], now[0]
            assert (value is None and now is None) or value.equal(now), name


@pytest.mark.parametrize('fails', [False, True])
def test_nothing_is_left(fails):
    model = nn.Sequential(rkanet('Gating', ('layer4',)))
    model.train()
    model[0].backbone.layer1.eval()
    model[0].backbone.conv1.weight.requires_grad_(False)
    model(torch.randn(2, 3, 64, 64))[3].sum().backward()
    before = state(model)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def look():
        with at_rest(model):
            with Recorder(model) as recorder, BranchRecorder(model):
                model(x)
            (bridge,) = bridges(model).values()
            lines = {s.functions.layer: s.lines() for s in recorder.statistics.values()}
            with straightened(lines), without_block(bridge), without_functions(list(lines)):
                torch.rand(3), random.random(), np.random.rand()
                model(x)
                if fails:
                    raise RuntimeError('in the middle')

    if fails:
        with pytest.raises(RuntimeError, match='in the middle'):
            look()
    else:
        look()
    assert_same(before, state(model))


def test_wrapped_averaged_and_half(tmp_path):
    plain = rkanet(stages=('layer4',)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), Recorder(plain) as expected:
        out = plain(x)[3]
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(plain)
        with torch.no_grad(), Recorder(wrapped) as recorder, BranchRecorder(wrapped) as branch:
            plain(x)
        assert list(recorder.statistics) == list(expected.statistics)
        assert branch.branches['bridges.layer4'].calls == 1
    finally:
        torch.distributed.destroy_process_group()
    average = ExponentialMovingAverage(plain).eval()
    with torch.no_grad(), Recorder(average) as recorder:
        assert_close(average(x)[3], out)
    for name, own in expected.statistics.items():
        assert_close(recorder[f'module.{name}'].nonlinear_share(), own.nonlinear_share())
    half = copy.deepcopy(plain).bfloat16()
    with torch.no_grad(), Recorder(half) as recorder, BranchRecorder(half) as branch:
        half(x.bfloat16())
    assert branch.branches['bridges.layer4'].size == pytest.approx(branch_size(plain, x), rel=0.1)


def branch_size(model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad(), BranchRecorder(model) as recorder:
        model(x)
    return recorder.branches['bridges.layer4'].size


def test_a_block_that_two_stages_share():
    model = rkanet(stages=('layer3.1', 'layer3.2'), depth=34).eval()
    first, second = model.bridges['layer3_1'], model.bridges['layer3_2']
    second.block = first.block
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), Recorder(model) as recorder, BranchRecorder(model) as branch:
        out = model(x)[3]
        assert list(recorder.statistics) == ['bridges.layer3_1.block.kan1']
        assert recorder['bridges.layer3_1.block.kan1'].calls == 2
        with without_block(first):  # one stage loses it, the other keeps it
            assert not torch.allclose(model(x)[3], out)
        assert recorder['bridges.layer3_1.block.kan1'].calls == 3
    assert branch.branches['bridges.layer3_1'].calls == 1
    assert branch.branches['bridges.layer3_2'].calls == 2
    assert_close(model(x)[3], out)


def test_a_stage_that_runs_twice_for_an_image():
    model = rkanet(stages=('layer4',)).eval()
    images = torch.randn(6, 1, 3, 64, 64)
    with torch.no_grad(), BranchRecorder(model) as recorder:
        for pair in images.unflatten(0, (3, 2)):
            for image in pair:  # as DetectoRS does
                model(image)
            recorder.branches['bridges.layer4'].end_image()
        expected = [model(image)[3][0].mean(0) for image in images[1::2]]
    maps = recorder.branches['bridges.layer4'].maps
    assert [each['with_block'].equal(other) for each, other in zip(maps[:3], expected, strict=True)] == [True] * 3


def test_a_stage_that_never_ran():
    model = nn.ModuleList([rkanet(stages=('layer4',)), KANLinear(2, 2)])
    with BranchRecorder(model) as recorder:
        pass
    with pytest.raises(ValueError, match='0.bridges.layer4: the stage has not run'):
        _ = recorder.branches['0.bridges.layer4'].size
