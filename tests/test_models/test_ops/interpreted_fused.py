"""The fused Triton kernels in Triton's interpreter on the CPU, against PyTorch in double precision.

Run by test_triton.py in a process of its own, since Triton reads the wish for its interpreter when it is imported.
"""

from unittest.mock import patch

import pytest
import torch
from torch.testing import assert_close
from triton_bounds import watched
from triton_far import last_programs, untouched

from rkan_mm.models.ops import fused_triton as kernels
from rkan_mm.models.ops.functions import KINDS, example
from rkan_mm.models.ops.fused_triton import Parameters, Setting

SINGLE, HALF = torch.float32, torch.float16
SETTINGS = dict(
    linear=Setting('silu', False, False),
    conv3x3=Setting('silu', True, False, (3, 3), (1, 1), (1, 1)),
    stride_2=Setting('identity', False, False, (3, 3), (2, 2), (1, 1)),
    no_padding=Setting('none', True, False, (3, 3), (2, 2), (0, 0)),
    pointwise_stride_2=Setting('silu', False, False, (1, 1), (2, 2), (0, 0)),
    strides_that_differ=Setting('silu', False, False, (3, 3), (1, 2), (1, 0)),
)


STEPS = 1.0, 2.0, 1.5, 1.0, 0.1, 0.2, 0.3, 0.4, 0.0, 1.0, 0.9, 0.8
"""Of four polynomials."""


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """The interpreter runs one after the other."""
    monkeypatch.setattr(kernels, 'BLOCK', 2048)
    monkeypatch.setattr(kernels, 'PROGRAMS', 1)


def agrees(setting='linear', kind='spline3', dtype=SINGLE, out=None, contiguous=True, inputs=13, outputs=13,
           params=SINGLE, scaler=False, mask=False, bias=True, grids=True, arrays=2, training=True, **changes):
    setting = SETTINGS[setting]._replace(**changes)
    dtypes = (params, params if setting.base != 'none' else None, params if scaler else None,
              params if mask else None, params if bias else None)
    polynomial = kind == 'polynomial'
    return kernels._agrees(dtype, contiguous, dtypes, inputs, outputs, kind, 4,
                           () if polynomial else (SINGLE, ) * arrays, grids, STEPS if polynomial else (), setting,
                           out or dtype, 'ieee', training, setting[3:] == ((1, 1), (1, 1), (0, 0)), device='cpu')


@pytest.mark.parametrize(('setting', 'contiguous'), [
    ('linear', True), ('stride_2', False),
    *(pytest.param(setting, contiguous, marks=pytest.mark.slow) for setting in SETTINGS for contiguous in (True, False)
      if (setting, contiguous) not in (('linear', True), ('stride_2', False)))])
def test_settings(setting, contiguous):
    assert agrees(setting, contiguous=contiguous)


@pytest.mark.parametrize('setting', ['linear', pytest.param('stride_2', marks=pytest.mark.slow)])
@pytest.mark.parametrize('grids', [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', KINDS)
def test_kinds(kind, grids, setting):
    constant = kind == 'polynomial'
    assert agrees(setting, kind, grids=grids, scaler=grids, mask=not grids, bias=grids, constant=constant, arrays=1 + (
        kind == 'gaussian' or kind == 'switch' or grids), squash=constant)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['spline3', 'polynomial'])
@pytest.mark.parametrize(('dtype', 'out', 'params'), [
    (HALF, HALF, SINGLE), (HALF, HALF, HALF), (torch.bfloat16, torch.bfloat16, SINGLE),
    (SINGLE, HALF, SINGLE), (SINGLE, torch.bfloat16, SINGLE)])
def test_half_precision(dtype, out, params, kind):
    assert agrees('conv3x3', kind, dtype, out, params=params, constant=kind == 'polynomial', contiguous=False)


@pytest.mark.slow
def test_several_chunks_and_tiles(monkeypatch):
    """Sums are taken in a fixed order: two runs give the same bits."""
    monkeypatch.setattr(kernels, 'PROGRAMS', 64)
    for name in ('FORWARD', 'BACKWARD_INPUT', 'BACKWARD_WEIGHT'):
        monkeypatch.setattr(kernels, name, dict(getattr(kernels, name), BM=16, BN=16, BC=16))
    assert agrees('stride_2', inputs=29, outputs=29)
    assert agrees('linear', inputs=32, outputs=16)
    x, parameters, functions, setting = random_layer()
    grad = torch.randn(2, 5, 7, 7)
    first, second = (kernels.backward(x, parameters, functions, setting, grad, True, True) for _ in range(2))
    assert all(a is b or a.equal(b) for a, b in zip(first, second, strict=True))


def random_layer():
    parameters = Parameters(torch.randn(5, 3, 2, 1, 1), torch.randn(5, 3, 1, 1), None, None, torch.randn(5))
    functions = example('gaussian', 2, 3, (SINGLE, SINGLE), (), 'cpu')
    return torch.randn(2, 3, 7, 7), parameters, functions, SETTINGS['linear']


STRIDED = dict(transposed=lambda t: t.mT.contiguous().mT, sliced=lambda t: t.repeat_interleave(2, 3)[..., ::2],
               expanded=lambda t: t[:1].expand_as(t), offset=lambda t: torch.cat([t, t], 1)[:, t.shape[1]:])


@pytest.mark.parametrize('name', STRIDED)
def test_layouts(name):
    layout = STRIDED[name]
    x, parameters, functions, setting = random_layer()
    x, grad = layout(x), layout(torch.randn(2, 5, 7, 7))
    strange = Parameters(*(t if t is None else t.mT.contiguous().mT if t.dim() > 1 else t for t in parameters))
    assert_close(kernels.forward(x, strange, functions, setting, SINGLE),
                 kernels.forward(x.contiguous(), parameters, functions, setting, SINGLE), rtol=0, atol=0)
    ours = kernels.backward(x, strange, functions, setting, grad, True, True)
    right = kernels.backward(x.contiguous(), parameters, functions, setting, grad.contiguous(), True, True)
    assert_close([t for t in ours if t is not None], [t for t in right if t is not None], rtol=1e-5, atol=1e-5)


def test_a_part_of_the_gradients():
    x, parameters, functions, setting = random_layer()
    grad = torch.randn(2, 5, 7, 7)
    every = kernels.backward(x, parameters, functions, setting, grad, True, True)
    assert kernels.backward(x, parameters, functions, setting, grad, True, False)[0].equal(every[0])
    of_weights = kernels.backward(x, parameters, functions, setting, grad, False, True)
    assert of_weights[0] is None
    assert all(a is None or a.equal(b) for a, b in zip(of_weights[1:], every[1:], strict=True))


def test_an_empty_batch():
    x, parameters, functions, setting = random_layer()
    assert kernels.forward(x[:0], parameters, functions, setting, HALF).shape == (0, 5, 7, 7)


def test_the_check_notices(monkeypatch):
    forward, backward = kernels.forward, kernels.backward
    monkeypatch.setattr(kernels, 'forward', lambda *args: forward(*args) * 1.001)
    assert not agrees(training=False)
    monkeypatch.setattr(kernels, 'forward', forward)
    monkeypatch.setattr(kernels, 'backward', lambda *args: [t if t is None else t * 1.001 for t in backward(*args)])
    assert agrees(training=False)
    assert not agrees()


@pytest.mark.parametrize('rows', [pytest.param(1 << 23, marks=pytest.mark.slow), (1 << 31) + 500])
def test_beyond_32_bits(rows):
    """More than 2^31 elements; and more than 2^31 rows."""
    inputs, outputs = (300, 290) if rows < 1 << 31 else (2, 2)
    setting, functions = SETTINGS['linear'], example('gaussian', 2, inputs, (SINGLE, SINGLE), (), 'cpu')
    parameters = Parameters(torch.randn(outputs, inputs, 2), torch.randn(outputs, inputs), None, None, None)
    x, grad = untouched(rows, inputs, 1, 1), untouched(rows, outputs, 1, 1)
    x[-100:], grad[-100:] = torch.randn(100, inputs, 1, 1), torch.randn(100, outputs, 1, 1)
    assert min(x.numel(), grad.numel()) > 1 << 31
    packed = kernels.packed(parameters, setting, HALF)
    with last_programs(kernels), patch.object(kernels, 'packed', lambda *_: packed):
        y = kernels.forward(x, parameters, functions, setting, HALF)
        grad_x = torch.empty_like(x)
        kernels._input_gradient(x, parameters, functions, setting, grad, grad_x,
                                kernels._constants(x, y, functions, setting, HALF))
    def done(number: int, tile: int) -> slice:
        """What the last program has done."""
        return slice(-min(100, number % tile or tile), None)

    where = done(rows, kernels.FORWARD['BM']), done(outputs, kernels.FORWARD['BN'])
    right = kernels.forward(x[-100:], parameters, functions, setting, SINGLE)
    assert_close(y[where].float(), right[where], rtol=2e-3, atol=2e-2)
    where = done(rows, kernels.BACKWARD_INPUT['BM']), done(inputs, kernels.BACKWARD_INPUT['BN'])
    right = kernels.backward(x[-100:].float(), parameters, functions, setting, grad[-100:].float(), True, False)[0]
    assert_close(grad_x[where].float(), right[where], rtol=2e-3, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize('setting', SETTINGS)
def test_memory_of_others_is_left_alone(setting):
    with watched() as memory:
        assert agrees(setting, contiguous=False)
    assert memory.seen
