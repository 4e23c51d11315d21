"""The Triton kernels in Triton's interpreter on the CPU, against PyTorch in double precision.

Run by test_triton.py in a process of its own, since Triton reads the wish for its interpreter when it is imported.
"""

import pytest
import torch
from shared_polynomial_cases import CASES, check, settings, tensors, values_and_gradients
from torch.testing import assert_close
from triton_bounds import watched

from rkan_mm.models import Bernstein, Chebyshev, Jacobi
from rkan_mm.models.ops import identity
from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels
from rkan_mm.models.ops.shared_polynomial_conv import _OnGpu, _SharedPolynomialConv
from rkan_mm.models.ops.shared_polynomial_conv_torch import Window, shared_polynomial_conv2d_torch

QUICK = ('no_base', 'kernel_shorter_than_stride')
TAKEN = ('no_normalisation', 'dilation_and_stride', 'rectangular', 'pointwise_with_stride', 'padding_beyond_the_kernel',
         'large_kernel')
layouts = pytest.mark.parametrize('layout', [
    lambda x: x.contiguous(memory_format=torch.channels_last),
    *(pytest.param(layout, marks=pytest.mark.slow) for layout in (
        lambda x: x.mT.contiguous().mT, lambda x: x.repeat_interleave(2, 3)[..., ::2],
        lambda x: x[:1].expand(3, -1, -1, -1), lambda x: x[:, 1:])),
], ids=['channels_last', 'transposed', 'sliced', 'expanded', 'offset'])


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """The interpreter runs one after the other."""
    monkeypatch.setattr(kernels, 'TILE', 4096)


def form(x, weight, base_weight, scaler=None, *, normalize, stride, padding, dilation, basis=None):
    setting = _OnGpu(normalize is not identity, Window(stride, padding, dilation), basis)
    return _SharedPolynomialConv.apply(x, weight, base_weight, scaler, setting)


@pytest.mark.parametrize('case', [pytest.param(CASES[name], id=name, marks=[] if name in QUICK else pytest.mark.slow)
                                  for name in (*QUICK, *TAKEN)])
def test_equals_the_oracle(case):
    check(form, tensors(**case), settings(**case))


@layouts
def test_layouts(layout):
    x, *weights = tensors(shape=(3, 4, 8, 9), degree=3)
    x, options = layout(x), settings(stride=(2, 1))
    y = check(form, [x, *weights], options)[0]
    assert y.stride() == shared_polynomial_conv2d_torch(x, *weights, **options).stride()
    assert_close(values_and_gradients(form, [x, *(w.mT.contiguous().mT for w in weights)], options),
                 values_and_gradients(form, [x, *weights], options), rtol=0, atol=0)


@pytest.mark.parametrize(('basis', 'base'), [
    (Chebyshev(3), True), *(pytest.param(basis, base, marks=pytest.mark.slow) for basis, base in (
        (Chebyshev(3), False), (Jacobi(2, alpha=1.0, beta=0.5), True), (Bernstein(4), True), (Bernstein(4), False)))])
def test_prepares_the_parameters_itself(basis, base):
    def oracle(x, weight, base_weight, scaler, **options):
        return shared_polynomial_conv2d_torch(x, basis.to_monomials(weight * scaler), base_weight, **options)

    def ours(*inputs, **options):
        return form(*inputs, **options, basis=basis)

    inputs = [*tensors(degree=basis.degree, base=base), torch.randn(3, 3)]
    check(ours, inputs, settings(stride=(2, 2)), oracle=oracle)
    plain = check(ours, [*inputs[:3], torch.ones(3, 3)], settings(), oracle=oracle)[:-1]
    assert_close(values_and_gradients(ours, inputs[:3], settings()), plain)  # no scaler


@pytest.mark.parametrize(('channels_last', 'dtype', 'norm_dtype'), [
    (False, torch.float32, torch.float32), (True, torch.float16, torch.float32),
    pytest.param(True, torch.bfloat16, torch.bfloat16, marks=pytest.mark.slow)])
def test_activation_before_and_norm_behind(channels_last, dtype, norm_dtype):
    """As the kernels check themselves: values with both, and all gradients with the activation."""
    window = Window((2, 1), (1, 1))
    case = dtype, (torch.float32,) * 3, (4, 3, 3), Chebyshev(3).change, True, window, dtype, channels_last
    for training, norm in ((True, None), (False, (*[norm_dtype] * 4, 1e-3))):
        for act in (False, True):
            assert kernels._agrees(*case, training, 5, act, norm, device='cpu')


@pytest.mark.slow
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('shape', 'stride', 'size'), [
    ((2, 19, 14, 14), 2, 3), ((2, 16, 7, 7), 1, 3), ((1, 3, 9, 11), 1, 5)])
def test_memory_of_others_is_left_alone(shape, stride, size, channels_last):
    x, *weights = tensors(shape, kernel=(size, size), degree=3)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with watched() as memory:
        values_and_gradients(form, [x, *weights], settings(stride=(stride,) * 2, padding=(size // 2,) * 2))
    assert memory.seen > 2 * x.numel()


@pytest.mark.slow
@pytest.mark.parametrize('size', [3, 5])
def test_several_blocks_in_several_chunks(size, monkeypatch):
    monkeypatch.setattr(kernels, 'TILE', 512)
    monkeypatch.setattr(kernels, 'MAX_CHUNKS', 1)
    monkeypatch.setattr(kernels, 'MAX_ROWS', 2)
    shape, options = (3, 20, 9, 13), settings(padding=(size // 2,) * 2)
    tiles = kernels._tiles(shape, False) if size > 3 else kernels._strips_of_gradients(shape, False, False, 2, False)
    assert tiles[0] > 2
    first, second = (check(form, tensors(shape, kernel=(size, size)), options) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(('dtype', 'channels_last'), [
    (torch.float16, True), pytest.param(torch.bfloat16, False, marks=pytest.mark.slow)])
def test_half_precision(dtype, channels_last):
    inputs = [t.to(dtype) for t in tensors(degree=3, scale=0.5)]
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    right = values_and_gradients(shared_polynomial_conv2d_torch, [t.double() for t in inputs], settings())
    for result, expected in zip(values_and_gradients(form, inputs, settings()), right, strict=True):
        assert result.dtype == dtype
        assert ((result - expected).norm() / expected.norm()) < 2 * torch.finfo(dtype).eps


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # numpy's, of the interpreter
def test_values_that_are_not_finite():
    x, *weights = tensors(shape=(1, 2, 9, 9))
    x[0, 0, 4, 4], x[0, 1, 4, 4] = torch.nan, torch.inf
    for dtype, tolerance in ((torch.float32, {}), (torch.bfloat16, dict(rtol=0.1, atol=0.1))):
        assert_close(form(x.to(dtype), *weights, **settings()).float(),
                     shared_polynomial_conv2d_torch(x, *weights, **settings()), equal_nan=True, **tolerance)


@pytest.mark.slow
def test_second_derivatives():
    basis = Chebyshev(3)

    def second(run, inputs):
        leaves = [t.detach().requires_grad_() for t in inputs]
        grads = torch.autograd.grad(run(*leaves).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    inputs = [*tensors(degree=3), torch.randn(3, 3)]
    results = second(lambda *t: form(*t, **settings(), basis=basis), inputs)
    rights = second(lambda x, w, b, s: shared_polynomial_conv2d_torch(x, basis.to_monomials(w * s), b, padding=(1, 1)),
                    [t.double() for t in inputs])
    for result, right in zip(results, rights, strict=True):
        assert ((result - right).norm() / right.norm()) < 1e-5


@pytest.mark.parametrize('change', [dict(training=False), *(pytest.param(change, marks=pytest.mark.slow) for change in (
    dict(), dict(channels_last=True), dict(dtype=torch.float16)))], ids=str)
def test_the_check_of_a_variant(change, monkeypatch):
    case = dict(dtype=torch.float32, channels_last=False, training=True) | change
    basis, window = Chebyshev(3), Window((2, 1), (1, 1), (1, 1))

    def check():
        return kernels._agrees(case['dtype'], (torch.float32,) * 3, (4, 3, 3), basis.change, True, window,
                               case['dtype'], case['channels_last'], case['training'], 5, device='cpu')

    assert check()
    forward, backward = kernels.forward, kernels.backward
    monkeypatch.setattr(kernels, 'forward', lambda *args: forward(*args) * 1.02)
    assert not check()
    monkeypatch.setattr(kernels, 'forward', forward)
    monkeypatch.setattr(kernels, 'backward', lambda *args: [t * 1.02 for t in backward(*args)])
    assert check() != case['training']


@pytest.mark.parametrize(('channels', 'like'), [(3, 3), (64, 64), (2048, 128), (130, 125)])
def test_what_is_checked_is_compiled_as_what_is_used(channels, like):
    """Channels last: the same tile, and numbers that 16 divides or does not."""
    assert kernels._like(channels) == like
    for heavy in (False, True):
        used, checked = (kernels._strips_of_outputs((2, n, 28, 28), True, 2, heavy)[2] for n in (channels, like))
        assert used == checked
    assert (channels % 16 == 0) == (like % 16 == 0)
