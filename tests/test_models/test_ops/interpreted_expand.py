"""The Triton kernels of `expand` in Triton's interpreter on the CPU, against PyTorch in double precision.

Run by test_triton.py in a process of its own, since Triton reads the wish for its interpreter when it is imported.
"""

import pytest
import torch
from torch.testing import assert_close
from triton_bounds import watched
from triton_far import last_programs, untouched

from rkan_mm.models.ops import expand_triton as kernels
from rkan_mm.models.ops.definition import expand_by_definition
from rkan_mm.models.ops.functions import KINDS, Functions

SINGLE, HALF = torch.float32, torch.float16
LAYOUTS = dict(planes=3, own=2)
"""Dims of the input."""


STEPS = *range(1, 6), *(0.1, 0.2, 0.3, 0.4, 0.5), *(0.0, 1.0, 0.9, 0.8, 0.7)
"""Of five polynomials."""


def agrees(kind='spline3', layout='planes', many=True, dtype=SINGLE, out=None, count=5, arrays=2, grid_dtype=SINGLE,
           base='silu', squash=False, centre=True, training=True):
    steps = tuple(step for row in range(3) for step in STEPS[5 * row:5 * row + count]) if kind == 'polynomial' else ()
    dtypes = (grid_dtype,) * (0 if kind == 'polynomial' else arrays)
    return kernels._agrees(dtype, LAYOUTS[layout], kind, count, dtypes, many, steps, (base, squash, centre),
                           out or dtype, training, device='cpu')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('many', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_all_kinds(kind, many, layout):
    for base, squash, centre in (('silu', True, True), ('none', False, False), ('identity', False, True)):
        assert agrees(kind, layout, many, base=base, squash=squash, centre=centre)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kind', ['spline1', 'spline2', 'spline3'])
def test_knots(kind, layout):
    for many, centre in ((True, True), (False, False)):
        assert agrees(kind, layout, many, arrays=1, centre=centre)


@pytest.mark.parametrize('order', [1, 2, 3])
@pytest.mark.parametrize('arrays', ['knots', 'middles'])
def test_on_knots_and_nan(order, arrays):
    """As in PyTorch, where both sides of a bend count for nothing, and no NaN is lost."""
    knots = torch.linspace(-4, 4, 9)[None]
    functions = Functions(f'spline{order}', 8 - order, knots)
    functions = functions if arrays == 'knots' else functions._replace(**dict(zip(
        ('points', 'inverse'), functions.middles(), strict=True)))
    x = torch.cat([knots, torch.tensor([[torch.nan]])], 1)
    leaf, setting = x.clone().requires_grad_(), ('none', False, False)
    right = expand_by_definition(leaf, functions, *setting)
    grad = torch.randn(right.shape)
    assert_close(kernels.forward(x, functions, setting, SINGLE), right, equal_nan=True)
    right.backward(grad)
    found = kernels.backward(x, functions, setting, grad)
    assert_close(found[:, :-1], leaf.grad[:, :-1])
    assert found[0, -1].isnan()


@pytest.mark.parametrize(('dtype', 'out'), [(HALF, HALF), (SINGLE, torch.bfloat16), (torch.bfloat16, SINGLE)])
def test_half_precision(dtype, out):
    for layout in LAYOUTS:
        assert agrees('spline3', layout, dtype=dtype, out=out, grid_dtype=dtype, count=8, squash=True)
    assert agrees('polynomial', dtype=dtype, out=out, count=3, squash=True)


@pytest.mark.parametrize('count', [1, 3, 64])
def test_numbers_of_functions(count):
    for layout in LAYOUTS:
        assert agrees('gaussian', layout, count=count)


def test_the_check_notices(monkeypatch):
    forward, backward = kernels.forward, kernels.backward
    monkeypatch.setattr(kernels, 'forward', lambda *args: forward(*args) * 1.001)
    assert not agrees(training=False)
    monkeypatch.setattr(kernels, 'forward', forward)
    monkeypatch.setattr(kernels, 'backward', lambda *args: backward(*args) * 1.001)
    assert agrees(training=False)
    assert not agrees()


@pytest.mark.parametrize('shape', [(0, 5), (3, 0), (0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_without_elements(shape):
    functions = Functions('gaussian', 4, torch.linspace(-1, 1, 4)[None], torch.ones(1))
    x = torch.empty(shape)
    y = kernels.forward(x, functions, ('silu', False, False), HALF)
    assert y.dtype == HALF
    assert y.shape == (*shape[:-1], 5, shape[-1])
    assert kernels.backward(x, functions, ('silu', False, False), y).shape == x.shape


@pytest.mark.parametrize('layout', LAYOUTS)
def test_beyond_32_bits(layout):
    """More than 2^31 elements, and three times as many values."""
    rows, size = 2_150_000, 1000
    functions = Functions('gaussian', 2, torch.linspace(-1, 1, 2)[None], torch.ones(1))
    setting = 'silu', False, False
    x = untouched(rows, 1, size) if LAYOUTS[layout] == 3 else untouched(rows, size)
    x[-1] = torch.randn(size)
    with last_programs(kernels):
        y = kernels.forward(x, functions, setting, HALF)
        grad = untouched(*y.shape)
        grad[-1] = 1.0
        result = kernels.backward(x, functions, setting, grad)
    leaf = x[-1:].double().requires_grad_()
    right = expand_by_definition(leaf, functions, *setting)
    right.sum().backward()
    assert_close(y[-1:].double(), right.detach(), rtol=1e-3, atol=1e-3)
    assert_close(result[-1:].double(), leaf.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_of_others_is_left_alone(layout):
    for many in (True, False):
        with watched() as memory:
            assert agrees('spline3', layout, many, arrays=1, centre=many)
        assert memory.seen


def test_the_watch_notices():
    functions = Functions('gaussian', 4, torch.linspace(-1, 1, 4)[None], torch.ones(1))
    with watched(), pytest.raises(Exception, match='elements lie outside of all arguments'):
        kernels._launch(kernels._forward, torch.rand(3, 5), functions, ('silu', False, False), torch.empty(7))
