"""Coefficients that were fitted to another grid are parameters as before: others flatten, view and optimise them."""

import numpy as np
import pytest
import torch
from test_grids_in_a_run import kinds, make
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d

CHANGES = dict(update=lambda layer, x: layer.update_grid(3 * x),
               grow=lambda layer, x: layer.update_grid(3 * x, grow=True),
               refine=lambda layer, x: layer.refine_grid(9),
               load=lambda layer, x: layer.load_state_dict(CHANGES['refine'](layer, x) or layer.state_dict()))


@kinds
@pytest.mark.parametrize('change', CHANGES)
def test_they_lie_side_by_side(kind, change):
    layer, x = make(kind)
    CHANGES[change](layer, x)
    expected = layer(x)
    vector = parameters_to_vector(layer.parameters())
    vector_to_parameters(vector.clone(), layer.parameters())
    assert layer(x).equal(expected)
    layer(x).square().mean().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in layer.parameters())


@kinds
def test_lbfgs_with_an_update_in_its_closure(kind):
    """As users of KANs train them."""
    layer, x = make(kind)
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.1, max_iter=3)

    def closure():
        optimizer.zero_grad()
        layer.update_grid(3 * x)
        loss = layer(x).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[-1] < losses[0]


@kinds
def test_what_is_no_input_is_refused_in_the_words_of_the_ordinary_layer(kind):
    layer, x = make(kind)
    before = layer.basis.grid.clone()
    other = x[..., :3] if kind.startswith('linear') else x[0, 0]
    for bad in (x.long(), x.to(torch.complex64), other, torch.zeros(()), None, [1.0]):
        for method in (layer.update_grid, layer.importance):
            if bad is None and method == layer.importance:
                continue  # which goes by the coefficients then
            with pytest.raises((RuntimeError, TypeError)) as error:
                method(bad)
            assert 'Dimension out of range' not in str(error.value)
    assert layer.basis.grid.equal(before)


def test_sizes_of_a_grid_are_integers_of_any_kind():
    for size in (9, np.int64(9), torch.tensor(9)):
        layer = KANLinear(4, 6)
        layer.refine_grid(size)
        assert type(layer.basis.grid_size) is int
    for size in (9.0, '9', None):
        with pytest.raises(TypeError, match='integer'):
            layer.refine_grid(size)


@pytest.mark.parametrize('uniform', [0.0, 0.5, 1.0])
def test_data_that_are_constant_but_for_rounding(uniform):
    layer = KANConv2d(4, 6, 3, normalization=dict(type='BN'))
    layer.update_grid(1e-30 * torch.randn(3, 4, 9, 8), uniform=uniform)
    layer(torch.randn(3, 4, 9, 8)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert (layer.basis.interior().diff(dim=1) > 0.1).all()
    layer = KANLinear(4, 6)
    assert layer.update_grid(1e-7 * torch.rand(99, 4), uniform=uniform)  # small numbers are numbers
    assert layer.basis.interior().abs().max() < 1e-6


@pytest.mark.parametrize('normalization', ['min-max', 'standardization', 'arctan', 'layer_norm'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_patches_in_half_precision(normalization, dtype):
    layer, x = SharedKANConv2d(3, basis=dict(type='BSpline'), normalization=normalization), torch.rand(2, 3, 9, 8)
    expected = layer(x)
    layer, x = layer.to(dtype), x.to(dtype)
    assert_close(layer(x).float(), expected, rtol=0.05, atol=0.1)
    layer(x).sum().backward()
    layer.prune(0.3, x=x)
    layer.update_grid(3 * x)
    layer.refine_grid(9)
    assert layer(x).dtype == dtype
    assert nn.Sequential(layer)(x).isfinite().all()


@pytest.mark.parametrize('kind', ['linear', 'conv2d'])
def test_a_wrong_input_of_a_layer_whose_coefficients_are_parametrized(kind):
    layer, x = make(kind)
    parametrize.register_parametrization(layer, 'basis_weight', nn.Softplus(), unsafe=True)
    assert layer(x).isfinite().all()
    for bad in (x.double(), x[..., :3] if kind == 'linear' else x[:, :3]):
        with pytest.raises(RuntimeError, match='dtype|type|channels|shapes|size'):
            layer(bad)
