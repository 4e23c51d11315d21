"""What others hang on a basis or change in it counts beside kernels, too; and another layer's checkpoint is refused."""

import copy
import os
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import (
    BSpline,
    Chebyshev,
    GaussianRBF,
    GroupedKANConv2d,
    KANConv1d,
    KANConv2d,
    KANConvTranspose2d,
    KANLinear,
    SharedKANConv2d,
)
from rkan_mm.registry import BASES

LAYERS = dict(spline_conv=lambda **args: KANConv2d(3, 8, 3, **args), expand=lambda **args: KANConv2d(3, 17, 3, **args),
              transposed=lambda **args: KANConvTranspose2d(3, 4, 3, **args),
              linear=lambda **args: KANLinear(9, 4, **args), shared=lambda **args: SharedKANConv2d(3, **args))


def both(layer, x):
    """With kernels, and without."""
    for kernels in '10':
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            yield layer(x)


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('basis', ['BSpline', 'GaussianRBF', 'Chebyshev'])
@pytest.mark.parametrize('part', ['basis', 'base_act'])
@pytest.mark.parametrize('how', ['hook', 'forward'])
def test_who_watches_a_part_is_called(kind, basis, part, how):
    layer, x = LAYERS[kind](basis=dict(type=basis), base_act_cfg=dict(type='SiLU')), torch.randn(2, 3, 9, 9)
    before, = (layer(x) for _ in range(1))
    watched = getattr(layer, part)
    if how == 'hook':
        handle = watched.register_forward_hook(lambda module, args, out: 2 * out)
    else:
        watched.forward = lambda *args: 2 * type(watched).forward(watched, *args)
    ours, plain = both(layer, x)
    assert_close(ours, plain)
    assert not torch.allclose(ours, before)
    handle.remove() if how == 'hook' else watched.__dict__.pop('forward')
    assert_close(layer(x), before)


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize(('parent', 'method'), [
    (BSpline, 'forward'), (GaussianRBF, 'forward'), (GaussianRBF, 'window'), (Chebyshev, 'forward'),
    (Chebyshev, 'evaluate')])
def test_a_subclass_has_its_own_values(kind, parent, method):
    plain_method = getattr(parent, method)

    def changed(self, *args):
        return [2 * v for v in plain_method(self, *args)] if method == 'evaluate' else 2 * plain_method(self, *args)

    mine = type('Mine', (parent,), {method: changed, 'constant_first': False})
    with patch.dict(BASES._module_dict, Mine=mine):
        torch.manual_seed(0)
        layer, x = LAYERS[kind](basis=dict(type='Mine')), torch.randn(2, 3, 9, 9)
    ours, plain = both(layer, x)
    assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    with torch.no_grad():
        other = LAYERS[kind](basis=dict(type=parent.__name__))
        other.load_state_dict(layer.state_dict())
        assert not torch.allclose(ours, other(x), rtol=1e-3, atol=1e-3)


def test_kernels_for_subclasses_that_change_nothing():
    for parent in (BSpline, GaussianRBF, Chebyshev):
        assert type('Mine', (parent,), {}).computes_as_it_says()


@pytest.mark.parametrize('change', ['another basis', 'padding', 'activation', 'PReLU', 'hook on a basis'])
def test_groups_that_differ(change):
    layer, x = GroupedKANConv2d(4, 2, kernel_size=3, padding=1), torch.rand(1, 4, 6, 6)
    if change == 'another basis':
        layer[1] = SharedKANConv2d(3, padding=1, basis=dict(type='Legendre'))
    elif change == 'padding':
        layer[1].padding = layer[1].dilation = 2
    elif change == 'activation':
        layer[1].base_act = torch.nn.ReLU()
    elif change == 'PReLU':  # each learns its own
        layer[0].base_act, layer[1].base_act = torch.nn.PReLU(init=0.1), torch.nn.PReLU(init=0.7)
    else:
        layer[1].basis.register_forward_hook(lambda module, args, out: 2 * out)
    assert_close(layer(x), torch.cat([conv(part) for conv, part in zip(layer, x.chunk(2, 1), strict=True)], 1))


@pytest.mark.parametrize('basis', ['Chebyshev', 'BSpline'])
def test_an_activation_in_place_leaves_the_input_as_it_is(basis):
    args = dict(kernel_size=3, basis=dict(type=basis), normalization='tanh')
    layer = SharedKANConv2d(base_act_cfg=dict(type='ReLU', inplace=True), **args)
    x = torch.randn(1, 2, 6, 6)
    kept = x.clone()
    layer(x)
    assert_close(x, kept)


ONLY = dict(with_base=False, bias=False)


@pytest.mark.parametrize(('make', 'other'), [
    (lambda: KANConv2d(3, 8, 3, **ONLY), lambda: KANConv2d(3, 5, 3, **ONLY)),
    (lambda: KANConv2d(3, 8, 3, **ONLY), lambda: KANConv2d(4, 8, 3, **ONLY)),
    (lambda: KANConv2d(3, 8, 3, **ONLY), lambda: KANConv2d(3, 8, 5, **ONLY)),
    (lambda: KANConv2d(3, 8, 3, **ONLY), lambda: KANConv1d(3, 8, 3, **ONLY)),
    (lambda: KANConv2d(3, 8, 3, **ONLY), lambda: KANConv2d(3, 5, 3, basis=dict(type='BSpline', grid_size=9), **ONLY)),
    (lambda: KANConv2d(3, 8, 3, **ONLY), lambda: KANConv2d(4, 8, 3, basis=dict(type='BSpline', grid_size=9), **ONLY)),
    (lambda: KANLinear(3, 8, basis=dict(type='BSpline', per_channel=False), **ONLY), lambda: KANLinear(4, 8, **ONLY)),
    (lambda: SharedKANConv2d(3, basis=dict(type='BSpline')), lambda: SharedKANConv2d(5, basis=dict(type='BSpline')))])
def test_a_checkpoint_of_another_layer_is_refused(make, other):
    """And the layer works as before, also where somebody only logs what does not fit, as mmengine does."""
    layer, state = make(), other().state_dict()
    shapes = {name: value.shape for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match='size mismatch for .*weight'):
        layer.load_state_dict(state, strict=False)
    assert {name: value.shape for name, value in layer.state_dict().items()} == shapes
    x = torch.rand(2, 3) if isinstance(layer, KANLinear) else torch.rand(2, 3, 7, 7)
    assert layer(x).isfinite().all()
    finer = copy.deepcopy(layer)
    finer.refine_grid(12)
    layer.load_state_dict(finer.state_dict())
    assert_close(layer(x), finer(x))


@pytest.mark.parametrize(('make', 'other'), [
    (dict(type='BSpline', grid_size=5), dict(type='BSpline', grid_size=5, order=2)),
    (dict(type='BSpline', grid_size=5), dict(type='BSpline', grid_size=6, order=2)),  # as many functions
    (dict(type='BSpline', grid_size=5), dict(type='BSpline', grid_size=7, order=2)),  # as many knots
    (dict(type='BSpline', grid_size=5), dict(type='GaussianRBF', grid_size=8)),
    (dict(type='RSWAF', grid_size=8), dict(type='BSpline', grid_size=5)),
    (dict(type='RSWAF', grid_size=12), dict(type='BSpline', grid_size=5))], ids=str)
@pytest.mark.parametrize('build', [lambda basis: KANLinear(3, 8, basis=basis),
                                   lambda basis: SharedKANConv2d(3, basis=basis)])
@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_a_checkpoint_of_other_functions_is_refused(make, other, build, load):
    """It gave a layer with more coefficients than functions, or coefficients of others, and nobody said so."""
    layer, state, x = build(make), build(other).state_dict(), torch.rand(2, 3, 7, 3)
    before = layer.coefficient_parameter.clone()
    with pytest.raises(RuntimeError, match=r'size mismatch for basis\.grid|size mismatch for (basis_)?weight'):
        load(layer, state, strict=True)
    assert layer.coefficient_parameter.equal(before)
    assert layer(x).isfinite().all()


@pytest.mark.parametrize('size', [5, 10])
def test_a_grid_without_coefficients_keeps_their_number(size):
    layer, basis = KANLinear(3, 8), dict(type='BSpline', grid_size=size, grid_range=(-2, 2))
    state = KANLinear(3, 8, basis=basis).state_dict()
    del state['basis_weight']
    with nullcontext() if size == 5 else pytest.raises(RuntimeError, match='size mismatch for basis.grid'):
        layer.load_state_dict(state, strict=False)
    assert layer.basis.interior()[0, 0] == (-2 if size == 5 else -1)
    assert layer(torch.rand(2, 3)).isfinite().all()


def test_a_mask_of_another_layer_is_refused():
    layer, other = KANLinear(3, 8), KANLinear(3, 8)
    other.prune(amount=0.5)
    state = {**other.state_dict(), 'mask': torch.ones(2, 2)}
    with pytest.raises(RuntimeError, match=r'size mismatch for mask: .*\[2, 2\].* is torch.Size\(\[8, 3\]\)'):
        layer.load_state_dict(state)
    assert layer.mask is None
