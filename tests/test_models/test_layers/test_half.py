"""Layers of one half precision under autocast to the other, and what is measured and changed under autocast."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import (
    GroupedKANConv2d,
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANConvTranspose2d,
    KANLinear,
    SharedKANConv2d,
)
from rkan_mm.models.layers import prune

CHEBYSHEV = dict(type='Chebyshev')
LAYERS = dict(
    conv=(lambda: KANConv2d(4, 6, 3), (2, 4, 6, 6)),
    low_memory=(lambda: KANConv2d(4, 6, 3, memory='low'), (2, 4, 6, 6)),
    polynomials=(lambda: KANConv2d(4, 6, 3, basis=CHEBYSHEV), (2, 4, 6, 6)),
    conv1d=(lambda: KANConv1d(4, 6, 3), (2, 4, 6)), conv3d=(lambda: KANConv3d(4, 6, 2), (2, 4, 4, 4, 4)),
    transposed=(lambda: KANConvTranspose2d(4, 6, 3), (2, 4, 5, 5)), linear=(lambda: KANLinear(4, 6), (50, 4)),
    scaler=(lambda: KANLinear(4, 6, with_scaler=True), (50, 4)),
    rational=(lambda: KANLinear(4, 6, basis=dict(type='Rational')), (50, 4)),
    shared=(lambda: SharedKANConv2d(3), (2, 4, 6, 6)),
    shared_gaussians=(lambda: SharedKANConv2d(3, basis=dict(type='GaussianRBF')), (2, 4, 6, 6)),
    shared_patches=(lambda: SharedKANConv2d(3, normalization='min-max'), (2, 4, 6, 6)),
    grouped=(lambda: GroupedKANConv2d(4, 2, kernel_size=3), (2, 4, 6, 6)),
)
every_layer = pytest.mark.parametrize('name', LAYERS)
HALF = pytest.mark.parametrize('half', [torch.float16, torch.bfloat16], ids=str)


def build(name):
    layer, shape = LAYERS[name]
    return layer(), torch.randn(shape)


@every_layer
@HALF
@pytest.mark.parametrize('into', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('given', [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('pruned', [False, True])
def test_autocast_computes_in_what_it_says(name, half, into, given, pruned):
    """As it does in PyTorch's layers, whatever the weights and the input are."""
    layer, x = build(name)
    if pruned:
        prune(nn.ModuleList([layer]), 0.3)
    expected = layer(x)
    layer.to(half)
    with torch.autocast('cpu', into):
        y = layer(x.to(given))
        assert y.dtype == into
        y.sum().backward()
    assert_close(y.float(), expected, rtol=0.05, atol=0.15)
    assert all(p.grad.dtype == half and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('name', [name for name in LAYERS if name != 'grouped'])
@HALF
def test_importance_and_grids_know_no_autocast(name, half):
    layer, x = build(name)
    other, expected = copy.deepcopy(layer), layer.importance(x)
    with torch.autocast('cpu', half):
        assert layer.importance(x).equal(expected)
        assert layer.prune(0.3, x=x) == other.prune(0.3, x=x)
        if hasattr(layer.basis, 'update_grid') or hasattr(layer.basis, 'grid'):
            assert layer.update_grid(3 * x) is other.update_grid(3 * x) is True
            layer.refine_grid(9)
            other.refine_grid(9)
    assert_close(layer.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('name', [name for name in LAYERS if name != 'grouped'])
@pytest.mark.parametrize('given', [torch.float16, torch.bfloat16, torch.float64], ids=str)
@HALF
def test_importance_of_a_layer_in_half_precision(name, half, given):
    """With samples in any precision, beyond those whose squares the layer's own can hold."""
    layer, x = build(name)
    layer.to(half)
    x = (300 * x).to(half)
    expected = copy.deepcopy(layer).float().importance(x.float())
    assert_close(layer.importance(x.to(given)).float(), expected, rtol=0.05, atol=0.05 * expected.max().item())
    assert_close(layer.importance().float(), copy.deepcopy(layer).float().importance())


@pytest.mark.parametrize('normalization', ['BN1d', 'LN'])
def test_importance_with_a_norm_of_another_precision(normalization):
    layer, x = KANLinear(4, 3, normalization=dict(type=normalization)), torch.randn(50, 4)
    expected = layer.importance(x)
    assert_close(layer.importance(x.double()).float(), expected)
    assert_close(layer.to(torch.bfloat16).importance(x).float(), expected, rtol=0.05, atol=0.02)
    assert layer.update_grid(x)


def test_importance_of_samples_whose_squares_are_beyond_single_precision():
    for layer, x in (KANLinear(3, 2, basis=CHEBYSHEV, normalization='tanh'), torch.randn(50, 3)), (
            SharedKANConv2d(3), torch.randn(2, 2, 6, 6)):
        x.flatten()[5] = 1e30
        expected = copy.deepcopy(layer).double().importance(x.double())
        assert_close(layer.importance(x), expected.float(), rtol=1e-4, atol=0)
