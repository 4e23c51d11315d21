import itertools

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.registry import FUSIONS, build


@pytest.fixture
def tensors():
    return torch.randn(2, 32, 3, 4), torch.randn(2, 32, 3, 4)


def test_addition(tensors):
    out, residual = tensors
    assert_close(build(FUSIONS, dict(type='Addition'), 'x', channels=32)(out, residual), out + residual)


def test_gating(tensors):
    out, residual = tensors
    fusion = build(FUSIONS, dict(type='Gating'), 'x', channels=32)
    gate = torch.sigmoid(torch.einsum('oi,bihw->bohw', fusion.gate.weight[..., 0, 0], residual)
                         + fusion.gate.bias[:, None, None])
    assert_close(fusion(out, residual), out * gate + residual * (1 - gate))


@pytest.mark.parametrize(('bias', 'params'), [(False, 128), (True, 162)])
def test_se(tensors, bias, params):
    out, residual = tensors
    fusion = build(FUSIONS, dict(type='SE', bias=bias), 'x', channels=32)
    assert sum(p.numel() for p in fusion.parameters()) == params
    pooled = residual.mean((2, 3))
    squeezed = torch.relu(torch.nn.functional.linear(pooled, fusion.squeeze.weight.flatten(1), fusion.squeeze.bias))
    scale = torch.sigmoid(torch.nn.functional.linear(squeezed, fusion.excite.weight.flatten(1), fusion.excite.bias))
    assert_close(fusion(out, residual), out + residual * scale[:, :, None, None])


def test_context_weighs_the_residual_by_what_the_stage_sees(tensors):
    out, residual = tensors
    fusion = build(FUSIONS, dict(type='Context', ratio=8), 'x', channels=32)
    assert sum(p.numel() for p in fusion.parameters()) == 2 * 32 * 4 + 32 + 1
    channel = (out.mean((2, 3)) @ fusion.squeeze.weight.flatten(1).T).relu() @ fusion.excite.weight.flatten(1).T
    place = torch.einsum('i,bihw->bhw', fusion.place.weight.flatten(), out) + fusion.place.bias
    gate = (channel[:, :, None, None] + place[:, None]).sigmoid()
    assert_close(fusion(out, residual), out + gate * residual)
    assert_close(fusion(out, 3 * residual) - out, 3 * (fusion(out, residual) - out))  # gated by out alone


@pytest.mark.parametrize('kind', sorted(FUSIONS.module_dict))
@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('halved', [*itertools.product([False, True], repeat=2)], ids=str)
def test_under_autocast_either_may_be_in_half_precision(tensors, kind, half, halved):
    """As the stages of ConvNeXt and norms by layer or group are not."""
    out, residual = tensors
    fusion = build(FUSIONS, dict(type=kind), 'x', channels=32)
    with torch.autocast('cpu', half):
        found = fusion(*(t.to(half) if is_half else t for t, is_half in zip(tensors, halved, strict=True)))
    assert found.dtype == (half if all(halved) else torch.float32)
    assert_close(found.float(), fusion(out, residual), rtol=3e-2, atol=3e-2)


def test_se_keeps_a_unit_for_few_channels():
    assert build(FUSIONS, dict(type='SE'), 'x', channels=8).squeeze.out_channels == 1


def test_unknown_fusion():
    with pytest.raises(ValueError, match="no fusion 'Film'; there are Addition, Context, Gating, SE"):
        build(FUSIONS, dict(type='Film'), 'RKANet', channels=8)
