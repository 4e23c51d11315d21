"""The compiled spline convolution against the plain one in float64."""

import copy
import math
import os
from unittest.mock import patch

import pytest
import torch

from rkan_mm.models import KANConv2d
from rkan_mm.models.ops import load_kernels, spline_conv

needs_kernels = pytest.mark.skipif(load_kernels('spline_conv.cpp') is None, reason='no compiled kernels here')
CASES = [  # kernel size, padding, channels, grid, order, a grid a channel, other arguments
    (3, 0, (1, 5), 10, 3, True, dict(bias=False, with_scaler=True)),
    (3, 1, (5, 10), 10, 3, True, dict()),
    (3, 1, (2, 16), 20, 3, False, dict(base_act_cfg=None)),
    ((1, 2), (0, 1), (3, 4), 5, 2, True, dict(with_base=False)),
    (2, 2, (2, 3), 3, 1, False, dict(with_scaler=True)),
    (5, 2, (1, 1), 1, 3, True, dict()),
]


def run(layer, x, grad):
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad, retain_graph=True)]


def used(y) -> bool:
    """Whether the kernel made this output."""
    nodes = [y.grad_fn, *[edge for edge, _ in y.grad_fn.next_functions if edge is not None]]
    return any('SplineConv' in type(node).__name__ for node in nodes)


@needs_kernels
@pytest.mark.parametrize(('kernel_size', 'padding', 'channels', 'grid_size', 'order', 'per_channel', 'kwargs'), CASES)
@pytest.mark.parametrize('threads', [1, 2])
def test_equals_the_plain_form(kernel_size, padding, channels, grid_size, order, per_channel, kwargs, threads):
    torch.manual_seed(0)
    basis = dict(type='BSpline', grid_size=grid_size, order=order, per_channel=per_channel)
    layer = KANConv2d(*channels, kernel_size, padding=padding, basis=basis, **kwargs)
    torch.nn.init.normal_(layer.basis_weight)
    if per_channel:
        layer.update_grid(torch.randn(4, channels[0], 7, 7) * torch.arange(1, channels[0] + 1)[:, None, None])
    x = torch.randn(3, channels[0], 9, 8) * 1.5  # beyond the ends of the grid, too
    x[0, 0, 0, :3] = torch.tensor([0.0, 1e6, -1e6])
    oracle = copy.deepcopy(layer).double()
    grad = torch.randn_like(layer(x))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = run(layer, x, grad)
    finally:
        torch.set_num_threads(before)
    assert used(fast[0])
    for got, want in zip(fast, run(oracle, x.double(), grad.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=3e-5, atol=3e-5 * float(want.detach().abs().max()))


@needs_kernels
def test_scratch_memory_is_for_no_more_threads_than_there_are_pictures(monkeypatch):
    """All threads are asked, though: OpenMP ends those that are not, and the next operation begins them anew."""
    layer, x = KANConv2d(2, 3, 3), torch.randn(2, 2, 5, 5)
    pointer, call = spline_conv.pointer, spline_conv._call

    def taken(threads):
        monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
        counts, teams = [], []
        monkeypatch.setattr(spline_conv, 'pointer', lambda t, count: counts.append(count) or pointer(t, count))
        monkeypatch.setattr(spline_conv, '_call', lambda library, team, *args: teams.append(team) or call(
            library, team, *args))
        layer(x).sum().backward()
        return counts, teams

    assert taken(64) == (taken(2)[0], [64, 64])


@needs_kernels
@pytest.mark.parametrize('kwargs', [dict(), dict(base_act_cfg=None, bias=False), dict(with_base=False)], ids=str)
@pytest.mark.parametrize('outputs', [1, 3, 16])
@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_reaches_the_pixels_that_see_it(value, outputs, kwargs):
    layer, x = KANConv2d(2, outputs, 3, padding=1, **kwargs), torch.randn(2, 2, 9, 20)
    x[0, 1, 4, 6] = x[1, 0, 8, 19] = value
    with torch.no_grad():
        found = [layer(x)]
        with patch.dict(os.environ, RKAN_MM_KERNELS='0'):
            found.append(layer(x))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert found[0].isfinite().all() == (not math.isnan(value) and not kwargs.get('with_base', True))


@needs_kernels
def test_second_derivatives():
    torch.manual_seed(0)
    layer = KANConv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 5, 5)
    found = []
    for model, image in ((layer, x), (copy.deepcopy(layer).double(), x.double())):
        image = image.requires_grad_()
        (slope,) = torch.autograd.grad(model(image).square().sum(), image, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [image, *model.parameters()]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@needs_kernels
@pytest.mark.parametrize('kwargs', [
    dict(stride=2), dict(dilation=2), dict(groups=2), dict(padding_mode='reflect', padding=1), dict(padding='same'),
    dict(base_act_cfg=dict(type='Tanh')), dict(out_channels=32), dict(normalization='tanh'),
    dict(normalization=dict(type='IN')), dict(basis=dict(type='BSpline', order=4)),
    dict(basis=dict(type='GaussianRBF')),
])
def test_other_layers_keep_the_general_form(kwargs):
    layer = KANConv2d(**dict(in_channels=2, out_channels=4, kernel_size=3, bias=False) | kwargs)
    assert not used(layer(torch.rand(1, 2, 8, 8)))


@needs_kernels
def test_half_precision_and_empty_batches():
    layer = KANConv2d(2, 4, 3)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(torch.rand(1, 2, 8, 8)).dtype == torch.bfloat16
    assert layer(torch.rand(0, 2, 8, 8)).shape == (0, 4, 6, 6)
