"""Regularisation, importance and pruning of functions."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANConvTranspose2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers import prune
from rkan_mm.models.layers.locked import Fixed, functions_shape, lock

LAYERS = {
    'conv': (lambda **a: KANConv2d(4, 6, (2, 3), groups=2, **a), (3, 4, 6, 5)),
    'transposed': (lambda **a: KANConvTranspose2d(4, 6, 2, groups=2, **a), (3, 4, 4, 4)),
    'linear': (lambda **a: KANLinear(4, 6, **a), (50, 4)),
    'normed': (lambda **a: KANConv2d(4, 6, 1, normalization=dict(type='IN'), **a), (3, 4, 6, 5)),
}
layers = pytest.mark.parametrize('kind', LAYERS)
bases = pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev', 'Bernstein'])


def made(kind: str, basis: str, **args) -> nn.Module:
    layer = LAYERS[kind][0](basis=dict(type=basis), with_scaler=True, **args).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@layers
@bases
def test_importance_is_the_rms_of_each_function(kind, basis):
    layer = made(kind, basis)
    x = torch.randn(LAYERS[kind][1], dtype=torch.float64)
    importance = layer.importance(x)
    assert importance.shape == layer.weight.shape
    u = layer.seen(x).movedim(layer.channel_dim, -1).flatten(0, -2)  # (N, C)
    raw = x.movedim(layer.channel_dim, -1).flatten(0, -2)
    values = layer.basis(u, -1)  # (N, C, F)
    transposed = getattr(layer, 'transposed', False)
    for edge in [(0, 0), (1, 1), (3, 1), (2, 0)]:
        if transposed:
            channel = edge[0]
        else:
            groups = getattr(layer, 'groups', 1)
            channel = edge[0] // (6 // groups) * (4 // groups) + edge[1]
        tap = (0,) * (layer.weight.dim() - 2)
        coefficients = layer.basis_weight[(*edge, slice(None), *tap)] * layer.scaler[(*edge, *tap)]
        phi = values[:, channel] @ coefficients + layer.weight[(*edge, *tap)] * F.silu(raw[:, channel])
        assert_close(importance[(*edge, *tap)], phi.square().mean().sqrt())


@layers
@bases
@pytest.mark.parametrize('with_data', [True, False])
def test_pruning(kind, basis, with_data):
    layer = made(kind, basis)
    x = torch.randn(LAYERS[kind][1], dtype=torch.float64)
    importance = layer.importance(x if with_data else None)
    total = importance.numel()
    assert layer.sparsity == 0
    reached = layer.prune(amount=0.25, x=x if with_data else None)
    assert reached == layer.sparsity == pytest.approx(round(0.25 * total) / total)
    assert importance[layer.mask == 0].max() <= importance[layer.mask == 1].min()
    more = layer.prune(threshold=importance.max().item() + 1, x=x if with_data else None)
    assert more == 1
    bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.dim() - 2 if kind != 'linear' else 0))
    assert_close(layer(x), torch.zeros_like(layer(x)) + bias)


@bases
def test_pruned_functions_give_nothing_and_learn_nothing(basis):
    layer = made('conv', basis)
    keep = torch.rand(layer.weight.shape) < 0.5
    layer.keep(keep)
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    cleared = made('conv', basis)
    cleared.load_state_dict({name: value for name, value in layer.state_dict().items() if name != 'mask'})
    cleared.weight.data *= keep
    cleared.basis_weight.data *= keep.unsqueeze(2)
    assert_close(layer(x), cleared(x))
    layer(x).square().sum().backward()
    assert (layer.weight.grad[~keep] == 0).all()
    assert (layer.basis_weight.grad.movedim(2, -1)[~keep] == 0).all()
    assert (layer.basis_weight.grad.movedim(2, -1)[keep] != 0).any()


def test_mask_survives_checkpoints(tmp_path):
    layer = made('conv', 'BSpline')
    layer.prune(amount=0.5)
    torch.save(layer.state_dict(), tmp_path / 'layer.pth')
    fresh = made('conv', 'BSpline')
    assert fresh.mask is None
    assert 'mask' not in fresh.state_dict()
    fresh.load_state_dict(torch.load(tmp_path / 'layer.pth', weights_only=True))
    assert fresh.sparsity == 0.5
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    assert_close(fresh(x), layer(x))


@pytest.mark.parametrize('with_data', [True, False])
def test_pruning_a_model_compares_all_layers(with_data):
    model = nn.Sequential(KANLinear(8, 16), nn.ReLU(), KANLinear(16, 4))
    for layer in (model[0].basis_weight, model[0].weight):
        layer.data *= 1e-3  # the first layer's functions go first
    x = torch.randn(64, 8)
    assert prune(model, 0.5, (lambda: model(x)) if with_data else None) == pytest.approx(0.5, abs=0.01)
    assert model[0].sparsity == pytest.approx(96 / 128, abs=0.05)
    assert model[2].sparsity < 0.1
    assert not model[0]._forward_pre_hooks


def test_pruning_a_model_by_all_its_calls():
    """As by picture after picture: it went by the first one, and by the finest map of a head that several share."""
    model = nn.Sequential(KANLinear(6, 4))
    calls = [torch.randn(n, 6) * torch.rand(6) * scale for n, scale in ((64, 0.1), (0, 1), (256, 3), (32, 1))]
    whole = model[0].importance(torch.cat(calls))
    calls.append(torch.full((2, 6), torch.nan))
    prune(model, 0.5, lambda: [model(x) for x in calls])
    assert_close(model[0].mask.bool(), whole > whole.flatten().sort().values[11])
    with pytest.raises(ValueError, match='reached 0 of 1 KAN layers'):
        prune(model, 0.5, lambda: [model(calls[i]) for i in (1, 4)])


def test_pruning_what_does_not_matter_keeps_the_output():
    layer = made('conv', 'BSpline')
    half = torch.rand(layer.weight.shape) < 0.5
    layer.weight.data[half] *= 1e-6
    layer.basis_weight.data.movedim(2, -1)[half] *= 1e-6
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    before = layer(x)
    layer.prune(threshold=1e-4, x=x)
    assert layer.sparsity == pytest.approx(half.double().mean().item())
    assert_close(layer(x), before, rtol=1e-4, atol=1e-4)


@layers
def test_penalties(kind):
    layer = made(kind, 'BSpline')
    c = layer.basis_weight * layer.scaler.unsqueeze(2)
    m = c.abs().mean(2)
    p = m / m.sum()
    penalties = layer.regularization()
    assert_close(penalties['l1'], m.sum())
    assert_close(penalties['entropy'], -(p * p.log()).sum(), rtol=1e-6, atol=1e-6)
    second = c.narrow(2, 2, 6) - 2 * c.narrow(2, 1, 6) + c.narrow(2, 0, 6)
    assert_close(penalties['smoothness'], second.square().mean(2).sum())
    sum(penalties.values()).backward()
    assert layer.basis_weight.grad.isfinite().all()


def test_penalties_at_their_ends():
    layer = KANLinear(4, 5, basis=dict(type='Chebyshev'))
    layer.basis_weight.data.fill_(0.5)
    assert_close(layer.regularization()['entropy'].item(), math.log(20))  # all alike
    layer.basis_weight.data.zero_()
    assert layer.regularization()['entropy'] == 0
    layer.basis_weight.data[0, 0] = 1
    assert layer.regularization()['entropy'].abs() < 1e-6
    assert set(layer.regularization()) == {'l1', 'entropy'}
    sum(layer.regularization().values()).backward()
    assert layer.basis_weight.grad.isfinite().all()


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: KANLinear(2, 2).prune(), 'KANLinear.prune: give either amount or threshold'),
    (lambda: KANLinear(2, 2).prune(amount=0.1, threshold=0.1), 'KANLinear.prune: give either amount or threshold'),
    (lambda: KANLinear(2, 2).prune(amount=1.5), 'the amount to prune must be in 0 to 1, got 1.5'),
    (lambda: prune(nn.Linear(2, 2), 0.5), 'prune: Linear has no KAN layer'),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('make', [lambda: KANLinear(16, 16), lambda: KANConv2d(4, 6, 3), lambda: SharedKANConv2d(5)],
                         ids=['linear', 'conv', 'shared'])
def test_pruning_again_by_coefficients_takes_those_that_are_left(make):
    layer = make()
    layer.prune(0.4)
    with torch.no_grad():
        for parameter in layer.parameters():  # as training does with a penalty, which reaches the live ones alone
            parameter.mul_(1 if layer.mask.shape == parameter.shape and parameter is layer.weight else 0.2)
    assert not layer.importance()[layer.mask == 0].any()
    assert layer.prune(0.6) == pytest.approx(0.6, abs=0.5 / layer.mask.numel())


@pytest.mark.parametrize('make', [lambda: KANLinear(4, 4), lambda: KANConv2d(2, 2, 2), lambda: SharedKANConv2d(4)],
                         ids=['linear', 'conv', 'shared'])
@pytest.mark.parametrize('with_data', [True, False])
@pytest.mark.parametrize('of_model', [True, False])
def test_functions_that_formulas_stand_for_are_not_pruned(make, with_data, of_model):
    layer = make()
    x = torch.randn(64, 4) if isinstance(layer, KANLinear) else torch.randn(4, 2, 8, 8)
    shape = functions_shape(layer)
    lock(layer, {tuple((torch.zeros(len(shape), dtype=int) + i).tolist()): Fixed('sin', (1.0, 1.0, 0.0, 0.0))
                 for i in range(2)})
    assert layer.sparsity == 0
    for amount, reached in ((0.25, 0.25), (0.5, 0.5), (1, 14 / 16)):
        found = prune(nn.Sequential(layer), amount, (lambda: layer(x)) if with_data else None) if of_model else (
            layer.prune(amount, x=x if with_data else None))
        assert found == layer.sparsity == reached
    assert len(layer.locked.functions()) == 2


@pytest.mark.parametrize('size', [8, 16, 32, 56, 64])
def test_importance_is_of_whole_pictures(size):
    """Equal distances between samples meet the borders alone where batch and sizes are powers of 2."""
    layer, x = KANConv2d(2, 3, 1), torch.randn(128, 2, size, size)
    x[..., 0] = 0
    assert_close(layer.importance(x) / layer.importance(x[..., 1:]),
                 torch.full_like(layer.importance(), (1 - 1 / size)**0.5), rtol=0.1, atol=0)


def test_importance_of_shared_functions_is_of_all_channels():
    layer, x = SharedKANConv2d(3, padding=1, basis=dict(type='BSpline')), torch.randn(128, 16, 32, 32)
    x[:, ::8] = 0
    others = x[:, [i for i in range(16) if i % 8]]
    assert_close(layer.importance(x) / layer.importance(others), torch.full((3, 3), (7 / 8)**0.5), rtol=0.1, atol=0)


@layers
@pytest.mark.parametrize('base', [0, 1, 'meta'])
@pytest.mark.parametrize('amounts', [(0.3, 0.6), (None, 0.5)], ids=str)
def test_layers_at_once_have_each_its_mask(kind, base, amounts):
    """By torch's ``stack_module_state``, as its own pruned layers, of which the masks are buffers."""
    models, x = [nn.Sequential(made(kind, 'BSpline')) for _ in amounts], torch.randn(LAYERS[kind][1]).double()
    for model, amount in zip(models, amounts, strict=True):
        if amount is not None:
            model[0].prune(amount)
    around = copy.deepcopy(models[1]).to('meta') if base == 'meta' else models[base]
    found = vmap(lambda *state: functional_call(around, state, (x,)))(*torch.func.stack_module_state(models))
    assert_close(found, torch.stack([model(x) for model in models]))
