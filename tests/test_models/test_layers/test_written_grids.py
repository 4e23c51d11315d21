"""Grids that others write to, by whatever way: functions are those of the grid as it is."""

import copy

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d

LAYERS = dict(linear=(lambda: KANLinear(4, 3), (50, 4)), conv=(lambda: KANConv2d(4, 3, 3), (3, 4, 6, 6)),
              wide=(lambda: KANConv2d(4, 17, 3), (3, 4, 6, 6)), low=(lambda: KANLinear(4, 3, memory='low'), (50, 4)),
              gaussians=(lambda: KANLinear(4, 3, basis=dict(type='GaussianRBF')), (50, 4)),
              shared=(lambda: SharedKANConv2d(3, basis=dict(type='BSpline')), (3, 4, 6, 6)))
every_layer = pytest.mark.parametrize('name', LAYERS)


def two_grids(name):
    """A layer of equal intervals, one with the same coefficients on others, an input, and what that makes of it."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    other = copy.deepcopy(layer)
    other.update_grid(x**3, uniform=0.0)
    with torch.no_grad():
        other.coefficient_parameter.copy_(layer.coefficient_parameter)
    layer(x)
    return layer, other, x, other(x)


def tensors(layer):
    return *layer.parameters(), *layer.buffers()


def copy_to(layer, other):
    with torch.no_grad():
        for tensor, theirs in zip(tensors(layer), tensors(other), strict=True):
            tensor.copy_(theirs)


def foreach(layer, other):
    with torch.no_grad():
        torch._foreach_copy_(tensors(layer), tensors(other))


def data(layer, other):
    for tensor, theirs in zip(tensors(layer), tensors(other), strict=True):
        tensor.data = theirs.data.clone()


def into_data(layer, other):
    for tensor, theirs in zip(tensors(layer), tensors(other), strict=True):
        tensor.data.copy_(theirs)


def lerp(layer, other):
    for _ in range(60):
        torch._foreach_lerp_([t.data for t in tensors(layer)], [t.data for t in tensors(other)], 0.5)


def swap(layer, other):
    with torch.no_grad():
        for tensor, theirs in zip(tensors(layer), tensors(copy.deepcopy(other)), strict=True):
            torch.utils.swap_tensors(tensor, theirs)


@every_layer
@pytest.mark.parametrize('write', [copy_to, foreach, data, into_data, lerp, swap])
@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad])
def test_written_in_place(name, write, mode):
    layer, other, x, expected = two_grids(name)
    with mode():
        write(layer, other)
        assert_close(layer(x), expected)
        write(layer, LAYERS[name][0]())
        write(layer, other)
        assert_close(layer(x), expected)


@every_layer
def test_given_by_functional_call(name):
    layer, other, x, expected = two_grids(name)
    before = layer(x)
    assert_close(functional_call(layer, other.state_dict(), (x,)), expected)
    assert_close(layer(x), before, rtol=0, atol=0)
    assert_close(functional_call(other, layer.state_dict(), (x,)), before)
    finer = copy.deepcopy(layer)
    finer.refine_grid(10)
    assert_close(functional_call(layer, finer.state_dict(), (x,)), finer(x))


@every_layer
def test_of_several_layers_at_once(name):
    layer, other, x, expected = two_grids(name)
    before = layer(x)
    for base in (layer, other):
        found = vmap(lambda params, buffers, base=base: functional_call(base, (params, buffers), (x,)))(
            *stack_module_state([layer, other]))
        assert_close(found, torch.stack([before, expected]), rtol=1e-4, atol=1e-5)


@every_layer
def test_with_gradients(name):
    """As PyTorch's own form has them."""
    layer, _, x, _ = two_grids(name)
    layer.basis.grid.requires_grad_()
    found, = torch.autograd.grad(layer(x).square().sum(), layer.basis.grid)
    layer.double()
    layer.basis.grid.requires_grad_()
    expected, = torch.autograd.grad(layer(x.double()).square().sum(), layer.basis.grid)
    if name == 'gaussians':
        assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)
    else:  # in double precision each knot counts by itself, in single those at the ends stand for all
        assert found.isfinite().all()
        assert found.abs().max() > 0
