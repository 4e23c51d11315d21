"""Layers with the same coefficients or the same grid: what changes one changes all, and no function."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANConvTranspose2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.tied import tied_to


def weights(a, b):
    b.basis_weight = a.basis_weight


def bases(a, b):
    b.basis = a.basis


def both(a, b):
    weights(a, b)
    bases(a, b)


def grids(a, b):
    b.basis.grid = a.basis.grid


MADE = dict(built=lambda pair: pair, copied=copy.deepcopy, pickled=lambda pair: pickle.loads(pickle.dumps(pair)))
CHANGES = dict(refine=lambda layer, x: layer.refine_grid(10), grow=lambda layer, x: layer.update_grid(x, grow=True),
               wider=lambda layer, x: layer.update_grid(x))


@pytest.mark.parametrize('tie', [weights, bases, both, grids])
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('made', MADE)
def test_all_keep_their_functions(tie, change, made):
    pair = torch.nn.ModuleList([KANLinear(4, 6), KANLinear(4, 6)])
    tie(*pair)
    one, other = MADE[made](pair)
    x = torch.randn(99, 4).clamp(-2, 2)
    narrow = x.clamp(-1, 1)
    before = one(narrow), other(narrow)
    CHANGES[change](one, x)
    assert other.basis.grid.equal(one.basis.grid)
    assert one.basis.grid_size == other.basis.grid_size
    assert one.grid_changes == other.grid_changes == 1
    tolerance = 0.2 if change == 'wider' else 1e-2  # as many intervals over twice the range
    for layer, expected in zip((one, other), before, strict=True):
        assert_close(layer(narrow), expected, rtol=0, atol=tolerance)
    assert (one.basis_weight is other.basis_weight) == (tie in (weights, both))


def test_by_several_steps_and_with_averages():
    layers = [KANConv2d(2, 2, 3, padding=1) for _ in range(4)]
    bases(layers[0], layers[1])
    weights(layers[1], layers[2])
    teacher = copy.deepcopy(torch.nn.ModuleList(layers))
    assert set(tied_to(layers[0])) == {layers[1], layers[2]}
    assert set(tied_to(*teacher)) == set()
    x = torch.randn(2, 2, 5, 5)
    expected = [layer(x) for layer in (*layers, *teacher)]
    layers[0].refine_grid(10, followers=[teacher[0]])
    for layer, right in zip((*layers, *teacher), expected, strict=True):
        assert_close(layer(x), right, rtol=0, atol=1e-2)
    assert [layer.basis.grid_size for layer in (*layers, *teacher)] == [10, 10, 10, 5] * 2


@pytest.mark.parametrize('other', [
    lambda: KANLinear(4, 6, basis=dict(type='BSpline', grid_range=(-2, 2))), lambda: KANLinear(4, 6, basis=dict(
        type='Chebyshev', degree=7)), lambda: KANLinear(4, 6, basis=dict(type='GaussianRBF', grid_size=8))])
@pytest.mark.parametrize('change', CHANGES)
def test_other_functions_of_the_same_coefficients_are_refused(other, change):
    one, other, x = KANLinear(4, 6), other(), torch.randn(9, 4)
    weights(one, other)
    before = one(x), other(x), one.basis.grid.clone()
    with pytest.raises(ValueError, match='KANLinear: it shares its coefficients or its grid with a KANLinear'):
        CHANGES[change](one, 3 * x)
    assert one(x).equal(before[0])
    assert other(x).equal(before[1])
    assert one.basis.grid.equal(before[2])


def test_grids_by_channel_of_a_convolution_and_a_transposed_one():
    """Whose coefficients have their inputs elsewhere."""
    one, other = KANConv2d(3, 3, 3, basis=dict(type='BSpline', per_channel=True)), KANConvTranspose2d(
        3, 3, 3, basis=dict(type='BSpline', per_channel=True))
    weights(one, other)
    with pytest.raises(ValueError, match='KANConv2d: it shares'):
        one.refine_grid(10)


def test_shared_kernels_and_layers_that_are_gone():
    one, other, x = (SharedKANConv2d(3, basis=dict(type='BSpline')), SharedKANConv2d(3, basis=dict(type='BSpline')),
                     torch.randn(1, 2, 5, 5))
    other.weight = one.weight
    expected = one(x), other(x)
    one.refine_grid(10)
    assert_close((one(x), other(x)), expected, rtol=0, atol=1e-2)
    del other, expected  # which keeps what its backward pass needs
    assert tied_to(one) == []


def test_in_the_order_in_which_they_were_made():
    """Ranks send each other what has changed, layer by layer: an order by addresses would be another in each."""
    made = [KANLinear(2, 2) for _ in range(20)]
    for layer in made:
        layer.basis_weight = made[0].basis_weight
    assert tied_to(made[0]) == made[1:]
