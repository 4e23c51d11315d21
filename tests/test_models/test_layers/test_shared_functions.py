"""The functions that all channels of a SharedKANConv2d share take part in all that other KAN layers can do."""

import copy

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.models import RKANet, SharedKANConv2d, prune

GRIDS = [dict(type='BSpline'), dict(type='GaussianRBF'), dict(type='ReLUKAN')]
CHEBYSHEV = dict(type='Chebyshev', degree=3)


def layer(basis=GRIDS[0], **kwargs) -> SharedKANConv2d:
    torch.manual_seed(0)
    conv = SharedKANConv2d(3, padding=1, basis=basis, **kwargs).double()
    with torch.no_grad():
        conv.weight.normal_()
    return conv


def images(scale=3.0):
    return scale * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize('basis', GRIDS[:1])
def test_a_growing_grid_keeps_the_outputs(basis):
    conv, x = layer(basis), images()
    before = conv(x)
    assert conv.update_grid(x, grow=True)
    low, high = conv.basis.interior()[0, [0, -1]]
    assert low <= x.min()
    assert high >= x.max()
    assert conv.weight.shape[0] == conv.basis.num_functions > 8
    assert_close(conv(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('basis', GRIDS)
def test_a_grid_lies_over_the_data(basis):
    conv, x = layer(basis), images()
    assert conv.update_grid(x, margin=0.0)
    assert_close(conv.basis.interior()[0, [0, -1]], torch.stack([x.min(), x.max()]))


def test_normalised_patches_are_what_a_grid_lies_over():
    conv, x = layer(normalization='min-max'), images()
    assert conv.update_grid(x, margin=0.0)
    assert_close(conv.basis.interior()[0, [0, -1]], torch.tensor([-1.0, 1.0]).double())


def test_refinement_by_a_multiple_is_exact():
    conv, x = layer(), images().clamp(-1, 1)
    before = conv(x)
    conv.refine_grid(10)
    assert conv.weight.shape == (13, 3, 3)
    assert_close(conv(x), before)


@pytest.mark.parametrize('basis', [*GRIDS, CHEBYSHEV])
@pytest.mark.parametrize('kwargs', [{}, dict(normalization='min-max'), dict(
    normalization='standardization', normalize_base=True, base_act_cfg=dict(type='SiLU', inplace=True))])
def test_importance_is_the_rms_of_each_function(basis, kwargs):
    conv, x = layer(basis, bias=False, **kwargs), images(1.0)
    importance = conv.importance(x)
    for i, j in ((0, 0), (1, 1), (2, 1)):
        alone = copy.deepcopy(conv)
        keep = torch.zeros(3, 3, dtype=torch.bool)
        keep[i, j] = True
        alone.keep(keep)
        assert_close(importance[i, j].double(), alone(x).square().mean().sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('basis', [GRIDS[0], CHEBYSHEV])
def test_pruned_functions_give_nothing_and_learn_nothing(basis):
    conv, x = layer(basis, bias=False), images(1.0)
    assert conv.prune(amount=4 / 9, x=x) == pytest.approx(4 / 9)
    off = conv.mask == 0
    conv(x).square().mean().backward()
    assert not conv.weight.grad[:, off].any()
    assert conv.base_weight.grad[~off].all()
    assert conv.importance(x)[off].max() == 0
    other = layer(basis, bias=False)
    other.load_state_dict(conv.state_dict())
    assert_close(other(x), conv(x))
    assert conv.prune(amount=1.0) == 1
    assert not conv(x).any()


def test_penalties():
    conv = layer()
    found = conv.regularization()
    coefficients = (conv.weight * conv.scaler).flatten(1)  # (F, taps)
    strength = coefficients.abs().mean(0)
    p = strength / strength.sum()
    assert_close(found['l1'], strength.sum())
    assert_close(found['entropy'], -(p * p.log()).sum())
    assert_close(found['smoothness'], coefficients.diff(n=2, dim=0).square().mean(0).sum())
    assert set(layer(CHEBYSHEV).regularization()) == {'l1', 'entropy'}


def rkanet(basis) -> RKANet:
    return RKANet(dict(type='mmdet.ResNet', depth=18, base_channels=4, stem_channels=4, norm_eval=False),
                  block=dict(type='RKANBlock', basis=basis))


def test_pruning_a_rkanet():
    net, x = rkanet(CHEBYSHEV), torch.rand(1, 3, 64, 64)
    assert prune(net, 0.5, lambda: net(x)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r'run\(\) reached 0 of 2 KAN layers of RKANet, not bridges.layer4.bl'):
        prune(net, 0.5, lambda: None)
    with pytest.raises(ValueError, match=r'run\(\) reached 1 of 2 KAN layers of RKANet, not bridges.layer4.bl'):
        prune(net, 0.5, lambda: net.bridges['layer4'].block.kan1(x))


def test_hooks_on_the_container_of_a_stage_fire():
    net, seen = rkanet(CHEBYSHEV), []
    net.bridges['layer4'].register_forward_hook(lambda module, args, out: seen.append(out))
    out = net(torch.rand(1, 3, 64, 64))[-1]
    assert len(seen) == 1
    assert_close(seen[0], out)
