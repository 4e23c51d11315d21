"""The compiled expansion against the PyTorch form of the layers that use it."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear
from rkan_mm.models.ops import can_expand, load_kernels

BASES = [
    dict(type='Chebyshev', degree=1), dict(type='Legendre', degree=4), dict(type='Jacobi', alpha=1.0, beta=0.2),
    dict(type='Laguerre'), dict(type='BSpline', order=1), dict(type='BSpline', order=2, grid_size=3),
    dict(type='BSpline', grid_size=20), dict(type='BSpline', per_channel=False), dict(type='GaussianRBF'),
    dict(type='GaussianRBF', per_channel=True), dict(type='RSWAF', width=0.8), dict(type='RSWAF', per_channel=True),
]
bases = pytest.mark.parametrize('basis', BASES, ids=str)
pytestmark = pytest.mark.skipif(load_kernels('expand.cpp') is None, reason='no compiler here')


def vary_grids(layer: nn.Module) -> None:
    grid = getattr(layer.basis, 'grid', None)
    if grid is not None:
        grid.data = grid * (1 + 0.2 * torch.rand(len(grid), 1))


def run(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out, x.grad, *[parameter.grad for parameter in layer.parameters()]]


def assert_same(layer: nn.Module, x: torch.Tensor) -> None:
    assert layer.recipe(x) is not None
    exact = copy.deepcopy(layer).double()
    if hasattr(exact.basis, 'uniform'):
        exact.basis.grid.data = layer.basis.grid.double()
    assert exact.recipe(x.double()) is None
    for fast, expected in zip(run(layer, x), run(exact, x.double()), strict=True):
        scale = expected.abs().max().item() if expected.numel() else 1
        assert_close(fast.double(), expected, rtol=1e-4, atol=1e-5 * scale)
    with torch.no_grad():
        assert_close(layer(x).double(), exact(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('groups', [1, 2])
@bases
def test_the_planes_at_zero_give_the_constant(basis, groups):
    layer, x = KANConv2d(4, 6, 3, padding=1, groups=groups, basis=basis), torch.randn(2, 4, 5, 5)
    vary_grids(layer)
    zero = layer._planes_at_zero(x)
    assert (zero is None) == layer.basis.constant_first
    found, expected = (layer._kernel_and_bias(t, False) for t in (zero, None))
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    by_plane = layer._kernel_and_bias(zero, True)[0].unflatten(1, (-1, 4 // groups)).transpose(1, 2).flatten(1, 2)
    assert_close(by_plane, expected[0], rtol=0, atol=0)


@bases
@pytest.mark.parametrize('options', [
    dict(), dict(with_base=False), dict(base_act_cfg=None), dict(normalization='tanh'), dict(normalization='none'),
    dict(memory='low'), dict(with_scaler=True),
], ids=str)
@pytest.mark.parametrize('size', [(5, 9), (4, 4)])
def test_conv(basis, options, size):
    layer = KANConv2d(3, 4, 3, padding=1, basis=basis, **options)
    vary_grids(layer)
    assert_same(layer, 1.3 * torch.randn(2, 3, *size))


@bases
@pytest.mark.parametrize('shape', [(4, 6), (2, 3, 17), (32,)])
@pytest.mark.parametrize('normalization', ['tanh', 'none'])
def test_linear(basis, shape, normalization):
    layer = KANLinear(shape[-1], 5, basis=basis, normalization=normalization)
    vary_grids(layer)
    assert_same(layer, 1.3 * torch.randn(shape))


@pytest.mark.parametrize('threads', [1, 2])
def test_large_enough_for_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(KANConv2d(16, 8, 3, padding=1), torch.randn(4, 16, 17, 15))
        layer, x = KANConv2d(16, 8, 3, padding=1), torch.randn(4, 16, 17, 15)
        assert layer(x).equal(layer(x))
    finally:
        torch.set_num_threads(before)


@bases
def test_layouts_and_empty_batches(basis):
    layer = KANConv2d(3, 4, 3, padding=1, basis=basis)
    x = torch.randn(2, 3, 6, 7)
    expected = layer(x)
    for other in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert_close(layer(other), expected)
    assert layer(x[:0]).shape == (0, 4, 6, 7)
    assert layer(x[:, :, :, :0].new_zeros(2, 3, 1, 1)).shape == (2, 4, 1, 1)


@bases
def test_far_outside_and_nan(basis):
    layer = KANConv2d(1, 1, 1, basis=basis, bias=False, with_base=False)
    x = torch.tensor([-1e4, -50.0, 50.0, 1e4, float('nan')]).view(1, 1, 1, 5).requires_grad_()
    out = layer(x)
    assert out[..., :4].isfinite().all()
    assert out[..., 4].isnan().all() or basis['type'] == 'BSpline'
    out[..., :4].sum().backward()
    assert x.grad[..., :4].isfinite().all()


def test_what_the_kernel_does_not_know(monkeypatch):
    x = torch.rand(2, 3, 4, 4)
    assert can_expand(x, KANConv2d(3, 3, 1).basis.functions(), 3)
    for layer in (KANConv2d(3, 3, 1, basis=dict(type='Fourier')), KANConv2d(3, 3, 1, base_act_cfg=dict(type='GELU')),
                  KANConv2d(3, 3, 1, basis=dict(type='RSWAF', trainable_grid=True)),
                  KANConv2d(3, 3, 1, basis=dict(type='BSpline', order=4)),
                  KANConv2d(3, 3, 1, normalization=dict(type='BN'))):
        assert layer.recipe(x) is None
        layer(x).sum().backward()
    assert KANConv2d(3, 3, 1).recipe(x.double()) is None
    monkeypatch.setenv('RKAN_MM_KERNELS', '0')
    layer = KANConv2d(3, 3, 1)
    assert layer.recipe(x) is None
    slow = run(layer, x)
    monkeypatch.delenv('RKAN_MM_KERNELS')
    layer.zero_grad()
    assert_close(slow, run(layer, x))
