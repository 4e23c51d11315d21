"""Parameters that do not fit a layer get what the plain form gives, not what a kernel would read."""

import contextlib
import os
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d
from rkan_mm.models.ops import shared_polynomial_conv_cpu
from rkan_mm.models.ops.functions import example
from rkan_mm.models.ops.fused import fit_together

LAYERS = dict(spline_conv=(lambda: KANConv2d(3, 8, 3), (2, 3, 9, 9)),
              expand=(lambda: KANConv2d(3, 17, 3), (2, 3, 9, 9)),
              linear=(lambda: KANLinear(3, 8), (5, 3)), shared=(lambda: SharedKANConv2d(3, bias=True), (2, 3, 9, 9)))
SHAPES = dict(  # the parameter, the dimension, and how much more or less it has there
    fewer_functions=('basis_weight', 2, -1), more_functions=('basis_weight', 2, 1), one_bias=('bias', 0, -7),
    fewer_knots=('basis.grid', 1, -1), more_knots=('basis.grid', 1, 1), fewer_grids=('basis.grid', 0, -1))
OTHERS = {f'{name}-{change}': (name, change) for name in ('basis_weight', 'weight', 'bias', 'basis.grid')
          for change in (torch.float64, torch.float16, 'meta')}


def outcomes(kind, name, change):
    """Of the layer with its kernels, and in plain PyTorch."""
    for kernels in '10':
        torch.manual_seed(0)
        layer, x = LAYERS[kind][0](), torch.randn(LAYERS[kind][1])
        owner, _, attribute = f'.{name}'.rpartition('.')
        owner = layer.get_submodule(owner.lstrip('.'))
        old = getattr(owner, attribute)
        new = change(old.detach())
        setattr(owner, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            try:
                yield layer(x)
            except (RuntimeError, TypeError, IndexError) as error:
                yield error


def check(kind, name, change):
    ours, plain = outcomes(kind, name, change)
    if isinstance(plain, Exception):
        assert type(ours) is type(plain)
        assert str(ours) == str(plain)
    else:
        assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', [kind for kind in LAYERS if kind != 'shared'])
@pytest.mark.parametrize('case', SHAPES)
def test_in_another_shape(kind, case):
    name, dim, more = SHAPES[case]

    def change(old):
        size = old.shape[dim] + more
        return torch.cat([old, old.narrow(dim, 0, 1)], dim) if more > 0 else old.narrow(dim, 0, max(1, size)).clone()

    check(kind, name, change)


def written(grid, how):
    """A grid as somebody leaves it."""
    middle = slice(grid.shape[1] // 2, None)
    if how in ('nan', 'inf', '-inf'):
        grid[:, middle] = float(how)
    elif how == 'descending':
        grid.copy_(grid.flip(1).clone())
    elif how == 'uneven':
        grid[:, middle] += 0.3
    elif how == 'equal':
        grid.fill_(0.5)
    else:
        grid.mul_(how)


@pytest.mark.parametrize('kind', [kind for kind in LAYERS if kind != 'shared'])
@pytest.mark.parametrize('how', ['nan', 'inf', '-inf', 'descending', 'uneven', 'equal', 1e30, 3e38, 1e-42, 3.0])
@pytest.mark.parametrize('told', [True, False], ids=['refreshed', 'not refreshed'])
@pytest.mark.parametrize('before', [True, False], ids=['called before', 'first call'])
def test_a_grid_that_somebody_has_written_to(kind, how, told, before):
    """Through ``data``, of which no version tells. Outputs and gradients are those of the knots as they are."""
    found = []
    for kernels in '10':
        torch.manual_seed(0)
        layer, x = LAYERS[kind][0](), torch.randn(LAYERS[kind][1]).requires_grad_()
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            if before:
                layer(x)
            written(layer.basis.grid.data, how)
            if told:
                layer.basis.refresh()
            y = layer(x)
            found.append([y, *torch.autograd.grad(y.sum(), [x, *layer.parameters()])])
    for ours, plain in zip(*found, strict=True):
        assert_close(ours, plain, rtol=1e-4, atol=1e-4, equal_nan=True)
    if how in ('nan', 'inf', '-inf'):
        assert found[0][0].isnan().any()
    if how == 'uneven':  # the splines of these knots, in double precision
        assert_close(layer.double()(x.double()), found[0][0].double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('taps', [True, False], ids=['conv', 'linear'])
@pytest.mark.parametrize('name', ['basis_weight', 'weight', 'scaler', 'mask', 'bias'])
def test_fused_kernels_are_asked_for_parameters_that_fit(taps, name):
    """A GPU's kernels know all shapes by those of the coefficients and the kernel's size."""
    triton = pytest.importorskip('rkan_mm.models.ops.fused_triton')
    functions, kernel = example('gaussian', 4, 3, (torch.float32,) * 2, (), 'cpu'), (3, 3) if taps else (1, 1)
    setting, x = triton.Setting('silu', False, False, kernel), torch.rand(2, 3, 9, 9)
    shape = (5, 3, *kernel) if taps else (5, 3)
    fitting = triton.Parameters(torch.rand(*shape[:2], 4, *shape[2:]), *torch.rand(3, *shape), torch.rand(5))
    assert fit_together(x, fitting, functions, setting)
    own = getattr(fitting, name)
    for dim in range(own.dim()):
        for more in (-1, 1):
            wrong = fitting._replace(**{name: torch.rand(*own.shape[:dim], own.shape[dim] + more,
                                                         *own.shape[dim + 1:])})
            assert not fit_together(x, wrong, functions, setting)
    assert not fit_together(x, fitting._replace(**{name: own[..., None]}), functions, setting)
    assert not fit_together(x[:, :2], fitting, functions, setting)
    assert not fit_together(x, fitting, functions, setting._replace(kernel=(5, 5)))
    for padding in ((-1, 0), (1.0, 1.0), (1,), 'same'):
        assert not fit_together(x, fitting, functions, setting._replace(padding=padding))


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('case', OTHERS)
def test_in_another_dtype_or_on_another_device(kind, case):
    name, change = OTHERS[case]
    if kind == 'shared' and name.startswith('basis'):
        pytest.skip('it has no such tensor')
    check(kind, name, lambda old: old.to(change))


def test_a_window_of_other_numbers_does_not_keep_a_cache_from_the_next(monkeypatch):
    """1.0 and True equal 1: what was found of them is not what is found of integers."""
    conv, x, forward = SharedKANConv2d(3, padding=1), torch.randn(1, 3, 11, 17), shared_polynomial_conv_cpu.forward
    taken = []
    monkeypatch.setattr(shared_polynomial_conv_cpu, 'forward', lambda *args: taken.append(1) or forward(*args))
    for number in (1.0, True):
        conv.stride = number, number
        with contextlib.suppress(TypeError):
            conv(x)
    conv.stride = 1, 1
    conv(x)
    assert taken
