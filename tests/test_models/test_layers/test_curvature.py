"""How much functions without a grid bend, against second derivatives by autograd."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.curvature import POINTS, curvature, input_range

BASES = [dict(type='Chebyshev', degree=4), dict(type='Bernstein'), dict(type='Fourier', num_frequencies=2),
         dict(type='Rational'), dict(type='Hermite', degree=2)]


@pytest.mark.parametrize('basis', BASES, ids=lambda basis: basis['type'])
@pytest.mark.parametrize('make', [
    lambda basis: KANLinear(3, 2, basis=basis, with_scaler=True),
    lambda basis: KANConv2d(2, 3, (1, 2), basis=basis),
    lambda basis: SharedKANConv2d((2, 1), basis=basis),
    lambda basis: KANLinear(3, 2, basis=basis, normalization=dict(type='LN')),
], ids=['linear', 'conv', 'shared', 'norm'])
def test_against_autograd(make, basis):
    layer = make(basis).double()
    for name, parameter in layer.named_parameters():
        if 'denominator' not in name:  # where it changes its sign, a rational function has a kink
            nn.init.normal_(parameter)
    ends = torch.tensor([-1.5, 2.0], dtype=torch.float64)
    found = curvature(layer, ends)
    x = torch.linspace(-1.5, 2.0, POINTS, dtype=torch.float64, requires_grad=True)
    u = x.tanh() if layer.normalization == 'tanh' else x
    values = layer.basis(u, -1)  # (N, F)
    seconds = []
    for value in values.unbind(1):
        for _ in range(2):
            if value is not None and value.requires_grad:
                value = torch.autograd.grad(value.sum(), x, create_graph=True, allow_unused=True)[0]
            else:
                value = None
        seconds.append(torch.zeros_like(x) if value is None else value)
    second = torch.stack(seconds, 1).detach()
    c = layer.coefficients().movedim(2, 0).flatten(1).detach()
    assert_close(found.detach(), (second @ c).square().mean(0).sum(), rtol=1e-4, atol=1e-4)
    found.backward()
    weight = layer.weight if isinstance(layer, SharedKANConv2d) else layer.basis_weight
    assert weight.grad.abs().max() > 0


def test_straight_functions_do_not_bend():
    layer = KANLinear(1, 1, basis=dict(type='Legendre'), normalization='none').double()
    layer.basis_weight.data = torch.tensor([[[3.0, -2.0, 0.0, 0.0]]], dtype=torch.float64)
    assert curvature(layer, torch.tensor([-2.0, 2.0])).item() < 1e-9


def test_range_of_inputs():
    x = torch.tensor([[[[0.5, 2.0], [1.0, 3.0]]]])
    assert input_range(KANConv2d(1, 1, 1), x).tolist() == [0.5, 3.0]
    assert input_range(KANConv2d(1, 1, 3, padding=1), x).tolist() == [0.0, 3.0]  # what is padded
    assert input_range(SharedKANConv2d(1), x.half()).tolist() == [0.5, 3.0]
    assert input_range(SharedKANConv2d(2, normalization='min-max'), x).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_penalties_know_no_autocast(half):
    layer = KANLinear(4, 3, basis=dict(type='Fourier', num_frequencies=8, period=2.0))  # 2 pi 8 / 2 to the fourth
    ends = input_range(layer, torch.linspace(-1, 1, 64).reshape(16, 4))
    grids = KANLinear(4, 3)

    def penalties():
        return curvature(layer, ends), *layer.regularization().values(), *grids.regularization().values()

    right = penalties()
    with torch.autocast('cpu', half):
        found = penalties()
    assert_close(found, right, rtol=0, atol=0)
    found[0].backward()
    assert layer.basis_weight.grad.isfinite().all()
    assert_close(curvature(layer.half(), ends), right[0], rtol=1e-2, atol=0)
