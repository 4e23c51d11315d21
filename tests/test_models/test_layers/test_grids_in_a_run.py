"""Grids never break a run: bad data, losses from before a change, pruned layers, moving averages."""

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from test_grid_update import GRIDS, LAYERS, rough
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear, RKANBlock, SharedKANConv2d
from rkan_mm.models.layers import prune
from rkan_mm.models.layers.copies import followers
from rkan_mm.models.layers.curvature import input_range
from rkan_mm.models.layers.locked import Fixed, lock

SHARED = {'shared': (lambda **a: SharedKANConv2d(3, padding=1, **a), (4, 4, 9, 8))}
kinds = pytest.mark.parametrize('kind', {**LAYERS, **SHARED})
grids = pytest.mark.parametrize('basis', GRIDS)
NAN, INF = float('nan'), float('inf')


def make(kind, **args):
    build, shape = {**LAYERS, **SHARED}[kind]
    layer = build(**{'basis': dict(type='BSpline'), **args})
    layer.normalization = 'none'  # tanh makes something else of bad values
    return layer, torch.rand(shape)


def state(layer):
    return copy.deepcopy(layer.state_dict())


@pytest.fixture
def said(monkeypatch):
    """What the log says."""
    lines = []
    logger = logging.Logger('test')
    handler = type('Lines', (logging.Handler,), dict(emit=lambda self, record: lines.append(record.getMessage())))
    logger.addHandler(handler(logging.WARNING))
    monkeypatch.setattr(MMLogger, 'get_current_instance', classmethod(lambda cls: logger))
    return lines


# -- data --------------------------------------------------------------------------------------------------------------
@kinds
@grids
@pytest.mark.parametrize('bad', [NAN, INF, -INF])
@pytest.mark.parametrize('options', [{}, dict(uniform=0.0), dict(grow=True)], ids=str)
def test_bad_values_are_left_out_and_counted(kind, basis, bad, options, said):
    layer, x = make(kind, basis=dict(type=basis, grid_range=(-1, 1)))
    x, other = 1.5 * x, copy.deepcopy(layer)
    spoilt = x.clone()
    spoilt.flatten()[::97] = bad
    assert layer.update_grid(spoilt, **options)
    assert said == [f'{type(layer).__name__}.update_grid: {len(x.flatten()[::97])} of {x.numel()} values are inf or '
                    'NaN, and left out']
    finite = torch.where(spoilt.isfinite(), spoilt, x.mean())
    other.update_grid(finite, **options)
    assert_close(layer.basis.interior(), other.basis.interior(), rtol=0.02, atol=0.02)
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@kinds
@pytest.mark.parametrize('bad', [NAN, INF])
@pytest.mark.parametrize('grow', [False, True])
def test_nothing_but_bad_values_changes_nothing(kind, bad, grow):
    layer, x = make(kind)
    before = state(layer)
    assert layer.update_grid(torch.full_like(x, bad), grow=grow) is False
    assert layer.update_grid(x[:0], grow=grow) is False
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_a_channel_of_bad_values_keeps_its_grid():
    for layer in (KANConv2d(2, 3, 3, padding=1), KANConv2d(2, 3, 1)):
        x = torch.rand(4, 2, 5, 5)
        x[:, 1] = NAN
        before = layer.basis.interior().clone()
        assert layer.update_grid(x)
        assert_close(layer.basis.interior()[1], before[1])
        assert not layer.basis.interior()[0].allclose(before[0])


@kinds
def test_input_without_a_batch(kind):
    layer, x = make(kind)
    other = copy.deepcopy(layer)
    if kind.startswith('linear'):
        x = x[:1]
    assert layer.update_grid(x[:1]) == other.update_grid(x[0])
    assert_close(layer.state_dict(), other.state_dict())
    assert_close(layer.importance(x[:1]), layer.importance(x[0]))


@pytest.mark.parametrize(('data', 'dtype'), [
    ((1e8, 1e8 + 8), torch.float32), ((-3e38, 3e38), torch.float32), ((-6e4, 6e4), torch.float16),
    ((500, 502), torch.bfloat16), ((0, 1e-44), torch.float32)], ids=str)
@pytest.mark.parametrize('basis', GRIDS)
def test_data_over_which_there_is_no_grid(data, dtype, basis, said):
    layer = KANLinear(2, 2, basis=dict(type=basis), normalization='none').to(dtype)
    x, before = torch.tensor(data, dtype=dtype)[:, None].expand(2, 2), state(layer)
    if layer.update_grid(x):
        assert all(value.isfinite().all() for value in layer.state_dict().values())
        assert (layer.basis.interior().diff(dim=1) > 0).all()
    else:
        assert_close(layer.state_dict(), before, rtol=0, atol=0)
        assert said
        assert 'the grid stays as it was' in said[0]
    assert layer(torch.rand(2, 2, dtype=dtype)).isfinite().all()


def test_a_far_value_does_not_make_a_grid_of_any_size(said):
    layer, x = KANLinear(2, 2), torch.rand(9, 2)
    x[3, 1] = 65504
    assert not layer.update_grid(x, grow=True)
    assert layer.basis.grid_size == 5
    assert 'the grid stays as it was; to grow over data from' in said[0]


@pytest.mark.parametrize('bad', [NAN, INF])
def test_importance_and_range_of_bad_values(bad):
    layer, x = KANLinear(3, 2, basis=dict(type='Chebyshev')), torch.randn(50, 3)
    spoilt = torch.cat([x, torch.full((1, 3), bad)])
    assert_close(layer.importance(spoilt), layer.importance(x))
    assert_close(input_range(layer, spoilt), input_range(layer, x))
    assert input_range(layer, spoilt[-1:]).isfinite().all()
    with pytest.raises(ValueError, match='KANLinear.importance: not one of 1 samples is without inf and NaN'):
        layer.importance(spoilt[-1:])
    for conv in (KANConv2d(3, 2, 3, normalization=dict(type='BN')), SharedKANConv2d(3, padding=1),
                 SharedKANConv2d(3, normalization='standardization')):
        images = torch.randn(4, 3, 8, 8)
        images[0, 0, 0, 0] = bad
        assert conv.importance(images).isfinite().all()
        assert conv.prune(0.5, x=images) == pytest.approx(0.5, abs=0.1)


# -- losses from before ------------------------------------------------------------------------------------------------
def refined_checkpoint(layer):
    other = copy.deepcopy(layer)
    other.refine_grid(11)
    layer.load_state_dict(other.state_dict())


CHANGES = dict(refine=lambda layer, x: layer.refine_grid(10), grow=lambda layer, x: layer.update_grid(3 * x, grow=True),
               update=lambda layer, x: layer.update_grid(3 * x), load=lambda layer, x: refined_checkpoint(layer))


@kinds
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('basis', [dict(type='BSpline'), dict(type='GaussianRBF', trainable_grid=True,
                                                               trainable_width=True)], ids=str)
def test_changes_while_an_old_loss_is_alive(kind, change, basis):
    layer, x = make(kind, basis=basis)
    loss, pending = layer(x).sum(), layer(x).sum()
    loss.backward()
    CHANGES[change](layer, x)
    layer(x).sum().backward()
    assert all(p.grad.shape == p.shape for p in layer.parameters())
    if change == 'refine' and basis['type'] == 'BSpline':
        told = 'of a loss from before a (grid was refined or grown|SharedKANConv2d changed its grid)|size of tensor'
        with pytest.raises(RuntimeError, match=told):
            pending.backward()
    torch.optim.Adam(layer.parameters()).step()


@pytest.mark.parametrize(('build', 'keeps'), [
    (lambda: KANConv2d(4, 3, 3), True), (lambda: KANConv2d(4, 17, 3), True),
    (lambda: KANConv2d(4, 3, 3, memory='low'), False),
    (lambda: SharedKANConv2d(3, basis=dict(type='BSpline')), False),
    (lambda: SharedKANConv2d(3, basis=dict(type='GaussianRBF')), False),
    (lambda: RKANBlock(4, 4, basis=dict(type='BSpline'), norm_cfg=dict(type='IN'), with_cp=True), False),
], ids=['spline_conv', 'expand', 'low', 'shared', 'gaussian', 'block'])
def test_the_backward_pass_after_an_update_is_right_or_an_error(build, keeps):
    module, x = build(), torch.randn(2, 4, 8, 8, requires_grad=True)
    layer = module.kan1 if isinstance(module, RKANBlock) else module
    inputs = [x, *module.parameters()]
    loss = module(x).square().sum()
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert layer.update_grid(3 * x.detach())
    if keeps:
        assert_close(torch.autograd.grad(loss, inputs), expected)
    else:
        with pytest.raises(RuntimeError, match='of a loss from before a .*KANConv2d changed its grid'):
            torch.autograd.grad(loss, inputs)
    module(x).square().sum().backward()


# -- pruned layers -----------------------------------------------------------------------------------------------------
@kinds
def test_strict_loads_both_ways(kind):
    plain, x = make(kind)
    pruned = copy.deepcopy(plain)
    pruned.prune(0.5)
    before, after = plain(x), pruned(x)
    a, b = state(plain), state(pruned)
    for _ in range(2):
        plain.load_state_dict(b)
        assert_close(plain(x), after)
        pruned.load_state_dict(a)
        assert pruned.mask is None
        assert_close(pruned(x), before)
        plain, pruned = pruned, plain
    if plain.normalization in ('tanh', 'none'):
        locked = copy.deepcopy(plain)
        lock(locked, {(0,) * locked.importance().dim(): Fixed('sin', (1.0, 2.0, 0.0, 0.0))})
        assert not locked(x).allclose(before)
        locked.load_state_dict(a)
        assert_close(locked(x), before)
        assert_close(locked.state_dict(), a)


def test_pruning_beside_moving_averages():
    """They pair the buffers of two models by their order."""
    model = nn.Sequential(KANLinear(3, 4), nn.BatchNorm1d(4), KANLinear(4, 2))
    average = ExponentialMovingAverage(model, momentum=0.5)
    model(torch.rand(8, 3))
    model[0].prune(0.5)
    for _ in range(2):
        average.update_parameters(model)
    assert_close(average.module[1].running_mean, model[1].running_mean)
    for model_of, to in ((model, average.module), (average.module, copy.deepcopy(model))):
        to.load_state_dict(model_of.state_dict())
        assert list(to.state_dict()) == list(model_of.state_dict())
    assert model.to(torch.float64)[0].mask.dtype == torch.float64


def test_moving_averages_are_pruned_as_their_layers():
    student = nn.Sequential(KANLinear(3, 4), KANLinear(4, 2))
    model = nn.ModuleDict(dict(student=student, teacher=copy.deepcopy(student).requires_grad_(False)))
    nn.init.normal_(model['teacher'][0].basis_weight)
    assert prune(model, 0.5, lambda: model['student'](torch.rand(9, 3))) == 0.5
    for ours, theirs in zip(model['student'], model['teacher'], strict=True):
        assert_close(ours.mask, theirs.mask)


# -- which layers are averages of which --------------------------------------------------------------------------------
def net():
    return nn.Sequential(KANLinear(3, 3), KANLinear(3, 3))


def frozen(module):
    return module.requires_grad_(False)


FIRST = net()


@pytest.mark.parametrize(('parts', 'pairs'), [
    (dict(student=net(), teacher=frozen(net())), {'student.0': 'teacher.0', 'student.1': 'teacher.1'}),
    (dict(encoder_q=net(), encoder_k=frozen(net()), head=net()), {'encoder_q.0': 'encoder_k.0'}),
    (dict(student=net(), teacher=net()), {}),
    (dict(layer1=frozen(net()), layer2=net()), {}),  # frozen stages
    (dict(net1=FIRST, net2=frozen(copy.deepcopy(FIRST))), {'net1.0': 'net2.0', 'net1.1': 'net2.1'}),
    (dict(student=net(), teacher=frozen(nn.Sequential(KANLinear(3, 3), KANLinear(3, 2)))), {}),
], ids=['teacher', 'encoders', 'both trained', 'stages', 'copies', 'other shapes'])
def test_pairs(parts, pairs):
    model = nn.ModuleDict(parts)
    found = {layer: copies for layer, copies in followers(model).items() if copies}
    for name, other in pairs.items():
        assert model.get_submodule(other) in found[model.get_submodule(name)]
    assert bool(found) == bool(pairs)


def test_copies_of_copies_pair_by_their_names():
    first = KANLinear(3, 3)
    model = nn.ModuleDict(dict(heads=nn.ModuleList(copy.deepcopy(first) for _ in range(3))))
    average = frozen(copy.deepcopy(model))
    found = followers(model, average)
    assert [found[layer] for layer in model['heads']] == [[layer] for layer in average['heads']]


@pytest.mark.parametrize('inside', [False, True])
def test_blocks_that_are_copies_of_one_are_no_averages(inside):
    """As those of a transformer, some of them frozen, or called without gradients by reentrant checkpoints."""
    blocks = nn.ModuleList(copy.deepcopy(block) for block in [nn.Sequential(KANLinear(3, 3))] * 3)
    model = nn.ModuleDict(dict(student=blocks))
    assert not any(followers(model, without_grad={blocks[1][0]}).values())
    frozen(blocks[0])
    assert not any(followers(model).values())
    average = ExponentialMovingAverage(blocks if inside else model)
    if inside:
        model['target'] = average
    found = followers(model, *([] if inside else [average.module]))
    averages = average.module if inside else average.module['student']
    assert found == {blocks[i][0]: [averages[i][0]] for i in (1, 2)}


@pytest.mark.parametrize('options', [{}, dict(grow=True), dict(uniform=0.0)], ids=str)
@pytest.mark.parametrize('basis', GRIDS)
def test_averages_stay_averages(basis, options):
    layer = rough(KANLinear(3, 4, basis=dict(type=basis, grid_range=(-1, 1)), normalization='none'))
    other, average = (rough(copy.deepcopy(layer)) for _ in range(2))
    average.basis_weight.data = 0.25 * layer.basis_weight + 0.75 * other.basis_weight
    layer.update_grid(1.3 * torch.randn(200, 3), followers=[other, average], **options)
    layer.refine_grid(13, [other, average])
    assert_close(average.basis.interior(), layer.basis.interior(), rtol=0, atol=0)
    far = (average.basis_weight - 0.25 * layer.basis_weight - 0.75 * other.basis_weight).abs().max()
    assert far < 1e-5 * (layer.basis_weight.abs().max() + other.basis_weight.abs().max())


@kinds
def test_the_input_by_its_name_in_pytorch(kind):
    layer, x = make(kind)
    assert_close(layer(input=x), layer(x))
    lock(layer, {(0,) * layer.importance().dim(): Fixed('sin', (1.0, 2.0, 0.0, 0.0))})
    assert_close(layer(input=x), layer(x))
    assert prune(nn.ModuleList([layer]), 0.5, lambda: layer(input=x)) > 0.4
