"""No input crashes the process: every layer by its kernels beside the same layer in plain PyTorch, on any input."""

import contextlib
import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from rkan_mm.models.ops import identity, pointer, readable, shared_polynomial_conv2d, shared_polynomial_conv2d_torch

fuzz = settings(max_examples=int(os.environ.get('RKAN_MM_EXAMPLES', 400)), deadline=None, derandomize=True,
                database=None)
sizes = st.sampled_from((0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33))
spatial = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33))
some = st.booleans
BASES = st.sampled_from((
    dict(type='BSpline'), dict(type='BSpline', order=1, grid_size=1), dict(type='BSpline', order=2, per_channel=False),
    dict(type='BSpline', order=4), dict(type='BSpline', grid_size=70), dict(type='GaussianRBF'),
    dict(type='GaussianRBF', per_channel=True), dict(type='GaussianRBF', trainable_grid=True), dict(type='RSWAF'),
    dict(type='RSWAF', per_channel=True, trainable_width=True), dict(type='ReLUKAN'), dict(type='Chebyshev'),
    dict(type='Legendre', degree=1), dict(type='Jacobi', degree=7), dict(type='Bernstein'), dict(type='Fourier'),
    dict(type='Rational')))
DIMENSIONS = {KANLinear: 0, KANConv1d: 1, KANConv2d: 2, KANConv3d: 3, KANConvTranspose2d: 2, SharedKANConv2d: 2}
ORDINARY = {KANLinear: nn.Linear, KANConv1d: nn.Conv1d, KANConv2d: nn.Conv2d, KANConv3d: nn.Conv3d,
            KANConvTranspose2d: nn.ConvTranspose2d}
LAYOUTS = dict(
    contiguous=lambda x: x,
    channels_last=lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    transposed=lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    every_second=lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x,
    offset=lambda x: torch.cat([x.flatten(), x.flatten()])[x.numel():].view(x.shape),
    expanded=lambda x: x[:1].expand(x.shape) if x.dim() and len(x) else x,
    negated=lambda x: torch._neg_view(x) if x.is_floating_point() else x,
    parameter=lambda x: nn.Parameter(x.detach()) if x.is_floating_point() else x,
    freed=lambda x: (x, x.untyped_storage().resize_(0))[0],
    shortened=lambda x: (x, x.untyped_storage().resize_(x.untyped_storage().nbytes() // 2))[0],
    zero=lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device),
    inference=lambda x: _in_inference(x),
    subclass=lambda x: x.as_subclass(type('Mine', (torch.Tensor,), {})),
    sparse=lambda x: x.to_sparse(), mkldnn=lambda x: x.to_mkldnn(), meta=lambda x: x.to('meta'),
    list=lambda x: x.tolist(),
)
UNREADABLE = ('freed', 'shortened')  # PyTorch itself reads beyond a shortened storage


def _in_inference(x):
    with torch.inference_mode():
        return x.clone()


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@st.composite
def layers(draw):
    """A class, its arguments, and how the layer is treated once it is built."""
    cls = draw(st.sampled_from(list(DIMENSIONS)))
    args, channels = dict(basis=draw(BASES)), draw(st.sampled_from((1, 2, 3, 4, 16)))
    if cls is not SharedKANConv2d:
        args |= dict(with_base=draw(some()), with_scaler=draw(some()), memory=draw(st.sampled_from(('fast', 'low'))),
                     base_act_cfg=draw(st.sampled_from((None, dict(type='SiLU'), dict(type='Tanh')))),
                     normalization=draw(st.sampled_from((None, 'none', 'tanh', dict(type='BN')))), bias=draw(some()))
        if isinstance(args['normalization'], dict):
            args['normalization'] = dict(type={0: 'BN1d', 1: 'BN1d', 2: 'BN', 3: 'BN3d'}[DIMENSIONS[cls]])
    if cls is KANLinear:
        return cls, args | dict(in_features=channels, out_features=draw(st.integers(1, 5)))
    args |= dict(kernel_size=draw(st.integers(1, 4)), stride=draw(st.sampled_from((1, 1, 2, 3))),
                 padding=draw(st.integers(0, 3)), dilation=draw(st.sampled_from((1, 1, 2, 3))))
    if cls is SharedKANConv2d:
        normalization = st.sampled_from((None, 'none', 'tanh', 'min-max', 'layer_norm'))
        return cls, args | dict(normalization=draw(normalization), with_base=draw(some()))
    args |= dict(in_channels=channels, out_channels=draw(st.sampled_from((1, 4, 17))) * (1 if channels % 2 else 2),
                 groups=draw(st.sampled_from((1, 1, 1 if channels % 2 else 2))))
    if cls is not KANConvTranspose2d:
        args['padding_mode'] = draw(st.sampled_from(('zeros', 'zeros', 'reflect', 'circular')))
    return cls, args


@st.composite
def inputs(draw, cls, args):
    """A shape that fits more often than not, a layout, and a dtype."""
    channels = args.get('in_features') or args.get('in_channels') or draw(st.sampled_from((1, 2, 3, 16, 32)))
    channels = draw(st.sampled_from((channels,) * 4 + (0, 1, channels + 1, 2 * channels)))
    outer = draw(st.lists(sizes, max_size=2)) if cls is KANLinear else draw(st.sampled_from(([0], [1], [2], [3], [])))
    inner = [draw(spatial) for _ in range(draw(st.sampled_from((DIMENSIONS[cls],) * 6 + (0, 1, 2, 3))))]
    shape = [*outer, channels, *inner]
    layout = draw(st.sampled_from(('contiguous',) * 5 + tuple(LAYOUTS)))
    dtype = draw(st.sampled_from((torch.float32,) * 5 + (torch.float64, torch.float16, torch.bfloat16, torch.int64,
                                                         torch.complex64)))
    return shape, layout, dtype


def outcome(layer, x, gradient=True):
    """Output and gradients, or the error."""
    layer.zero_grad()
    try:
        y = layer(x)
        found = [y.detach()]
        if gradient and y.requires_grad and not y.is_meta:
            y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype))
            found += [p.grad for p in layer.parameters()]
        return found
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError) as error:
        return error


def treated(layer, treatment):
    if treatment == 'empty':
        return layer.to('meta').to_empty(device='cpu')
    return layer.to(treatment) if treatment else layer


@fuzz
@given(st.data())
def test_every_layer_on_every_input(data):
    cls, args = data.draw(layers())
    shape, layout, dtype = data.draw(inputs(cls, args))
    treatment = data.draw(st.sampled_from((None,) * 6 + (torch.float64, torch.float16, 'meta', 'empty')))
    default = data.draw(st.sampled_from((torch.float32,) * 4 + (torch.float64, torch.bfloat16)))
    mode = data.draw(st.sampled_from((contextlib.nullcontext,) * 4 + (torch.no_grad, torch.inference_mode)))
    torch.manual_seed(0)
    with default_dtype(default):
        layer = treated(cls(**args), treatment)
        layer.eval()
        with contextlib.suppress(RuntimeError):
            x = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
        if 'x' not in locals():
            return  # PyTorch has no such tensor
        with mode():
            ours = outcome(layer, x)
            if treatment == 'empty' or layout in UNREADABLE:
                return  # numbers or memory that nobody knows; we are still here
            with patch.dict(os.environ, RKAN_MM_KERNELS='0'):
                plain = outcome(layer, x)
        if isinstance(plain, Exception) and layout == 'inference':
            assert isinstance(ours, Exception)  # one of two, where the shape is wrong, too
        elif isinstance(plain, Exception):
            assert type(ours) is type(plain)
            assert str(ours) == str(plain)
        else:
            assert not isinstance(ours, Exception), ours
            tolerance = 1e-4 if dtype == torch.float32 else 5e-2
            for a, b in zip(ours, plain, strict=True):
                if b is not None and not b.is_meta:
                    a, b = (t.to_dense() if t.is_mkldnn else t for t in (a, b))
                    scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
                    assert_close(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True, check_stride=False)
        if cls in ORDINARY and not treatment and layout != 'subclass':
            names = ('in_features', 'out_features', 'in_channels', 'out_channels', 'kernel_size', 'stride', 'padding',
                     'dilation', 'groups', 'bias', 'padding_mode')
            ordinary = ORDINARY[cls](**{k: v for k, v in args.items() if k in names})
            with mode():
                error = outcome(ordinary, x, False)
            if isinstance(error, Exception):
                assert isinstance(ours, type(error))


@pytest.mark.parametrize(('ours', 'ordinary', 'x'), [
    *[(KANConv2d(3, 8, 3), nn.Conv2d(3, 8, 3), torch.ones(2, channels, 16, 16)) for channels in (1, 2, 4, 6)],
    (KANConv2d(3, 17, 3), nn.Conv2d(3, 17, 3), torch.ones(2, 4, 16, 16)),
    (KANConv2d(3, 8, 3, with_base=False), nn.Conv2d(3, 8, 3), torch.ones(2, 1, 16, 16)),
    (KANConv2d(4, 8, 3, groups=2, bias=False), nn.Conv2d(4, 8, 3, groups=2, bias=False), torch.ones(2, 2, 16, 16)),
    (KANConv2d(3, 8, 3, stride=2), nn.Conv2d(3, 8, 3, stride=2), torch.ones(2, 3, 2, 2)),
    (KANConv2d(3, 8, 3), nn.Conv2d(3, 8, 3), torch.ones(2, 3, 2, 9)),
    (KANConv2d(3, 8, 3), nn.Conv2d(3, 8, 3), torch.ones(3)),
    (KANConv2d(3, 8, 3), nn.Conv2d(3, 8, 3), torch.ones(2, 3, 9, 9).double()),
    (KANConv2d(3, 8, 3).half(), nn.Conv2d(3, 8, 3).half(), torch.ones(2, 3, 9, 9)),
    (KANConv1d(3, 8, 3), nn.Conv1d(3, 8, 3), torch.ones(2, 2, 16)),
    (KANConv3d(3, 8, 3), nn.Conv3d(3, 8, 3), torch.ones(2, 4, 5, 5, 5)),
    (KANConvTranspose2d(3, 8, 3), nn.ConvTranspose2d(3, 8, 3), torch.ones(2, 1, 16, 16)),
    *[(GroupedKANConv2d(4, 2), nn.Conv2d(4, 4, 3, groups=4), torch.ones(2, channels, 8, 8)) for channels in (1, 2, 8)],
    (KANLinear(8, 4), nn.Linear(8, 4), torch.ones(2, 7)),
    (KANLinear(8, 4), nn.Linear(8, 4), torch.ones(2, 1)),
    (KANLinear(8, 4), nn.Linear(8, 4), torch.ones(())),
    (KANLinear(8, 4), nn.Linear(8, 4), torch.ones(2, 8, dtype=torch.int64)),
    (KANLinear(8, 4).to('meta'), nn.Linear(8, 4).to('meta'), torch.ones(2, 8)),
    (KANLinear(8, 4), nn.Linear(8, 4), torch.ones(2, 8, device='meta')),
    (KANLinear(8, 4), nn.Linear(8, 4), [[1.0] * 8]),
], ids=lambda value: f'{type(value).__name__}{list(value.shape)}' if isinstance(value, torch.Tensor) else '')
def test_an_input_that_does_not_fit_gets_the_sentence_of_the_ordinary_layer(ours, ordinary, x):
    messages = []
    for layer in (ours, ours, ordinary):
        with pytest.raises((RuntimeError, TypeError)) as error:
            layer(x)
        messages.append(str(error.value))
    assert messages == [messages[2]] * 3


@pytest.mark.parametrize('layer', [
    KANConv2d(2, 3, 3, bias=False), KANConvTranspose2d(2, 3, 1, basis=dict(type='Chebyshev'), with_base=False),
    KANConv1d(2, 3, 3), KANConv3d(2, 3, 3), KANLinear(2, 3), SharedKANConv2d(1, with_base=False),
    SharedKANConv2d(3, normalization='min-max'), GroupedKANConv2d(2, 2, with_base=False)], ids=repr)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('given', [torch.float32, torch.float16, torch.int64], ids=str)
def test_numbers_that_come_to_weights_on_meta_are_an_error(layer, dtype, given):
    """PyTorch's convolutions give what lies in memory, and its linear layer reads an input whose storage is gone."""
    layer = copy.deepcopy(layer).to('meta', dtype)
    shape = (6, 2) if isinstance(layer, KANLinear) else (2, 2, *[4] * getattr(layer, 'spatial', 2))
    x = torch.ones(shape, dtype=given)
    for size in (x.untyped_storage().nbytes(), 0):
        x.untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match='meta is not on the expected device cpu|dtype|should be the same'):
            layer(x)
    if given == dtype and x.is_floating_point():
        assert layer(x.to('meta')).is_meta


@pytest.mark.parametrize('layer', [
    *[cls(*args, basis=dict(type=basis), **options) for cls, args in (
        (KANLinear, (2, 3)), (KANConv1d, (2, 3, 3)), (KANConv2d, (2, 3, 3)), (KANConv3d, (2, 3, 3)),
        (KANConvTranspose2d, (2, 3, 3)))
      for basis, options in (('Fourier', dict(memory='low')), ('Chebyshev', dict(with_base=False)), ('BSpline', {}))],
    SharedKANConv2d(3, normalization='none'), SharedKANConv2d(3, basis=dict(type='GaussianRBF')),
    *[GroupedKANConv2d(2, 2, with_base=base) for base in (True, False)]], ids=repr)
def test_an_input_whose_storage_was_emptied_is_an_error(layer):
    """PyTorch's own element-wise operations would read it, and end the process."""
    x = torch.ones((6, 2) if isinstance(layer, KANLinear) else (2, 2, *[4] * getattr(layer, 'spatial', 2)))
    x.untyped_storage().resize_(0)
    for each in (x, x.detach().requires_grad_()):
        with pytest.raises(RuntimeError, match='data is not allocated yet'):
            layer(each)
    layer(x[:0])


SHORT = """
import resource, torch
from rkan_mm.models import KANConv2d
layer, x = KANConv2d(1, 16, 3), torch.rand(1, 1, 6, 6)
layer(x)
used = int(next(line for line in open('/proc/self/status') if line.startswith('VmSize')).split()[1]) << 10
x = torch.rand(1, 1, 4000, 4000)
resource.setrlimit(resource.RLIMIT_AS, (used + (1400 << 20), -1))  # the output fits, scratch memory does not
try:
    layer(x)
except RuntimeError as error:
    print(error)
"""


def test_short_of_memory_raises_as_pytorch_does():
    result = subprocess.run([sys.executable, '-c', SHORT], capture_output=True, text=True,
                            env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[3])))
    assert 'DefaultCPUAllocator: can\'t allocate memory' in result.stdout, result.stderr


@fuzz
@given(st.data())
def test_the_shared_convolution_with_any_window(data):
    numbers = st.sampled_from((0, 1, 1, 2, 3, 5, -1, 20, 129, 10**6, 10**12, 1.0, True))
    windows = st.tuples(*[st.tuples(numbers, numbers)] * 3)
    small = st.tuples(*[st.tuples(st.integers(low, 4), st.integers(low, 4)) for low in (1, 0, 1)])
    stride, padding, dilation = data.draw(st.one_of(small, small, windows))
    if any((p > 200 and s < p) or (p == 129 and s < 20) for s, p in zip(stride, padding, strict=True)):
        return  # such an output fills the memory in whatever form
    shape = data.draw(st.tuples(st.sampled_from((1, 2)), st.sampled_from((1, 2, 16, 17)), spatial, spatial))
    kernel = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
    degree, base = data.draw(st.integers(0, 8)), data.draw(st.sampled_from((None, kernel, kernel, (3, 3), kernel[:1])))
    layout = data.draw(st.sampled_from(('contiguous', 'channels_last', 'transposed', 'every_second', 'expanded')))
    torch.manual_seed(0)
    tensors = [LAYOUTS[layout](torch.randn(shape)), torch.randn(degree + 1, *kernel),
               torch.randn(base) if base else None]
    options = dict(normalize=data.draw(st.sampled_from((torch.tanh, identity))), stride=stride, padding=padding,
                   dilation=dilation)
    found = []
    for form in (shared_polynomial_conv2d, shared_polynomial_conv2d_torch):
        leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
        try:
            y = form(*leaves, **options)
            grad = LAYOUTS[layout](torch.linspace(-1, 1, y.numel()).view(y.shape)).clone()
            found.append([y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad,
                                                           allow_unused=True)])
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            found.append(error)
    ours, plain = found
    if isinstance(plain, Exception):
        assert type(ours) is type(plain), ours
    else:
        for a, b in zip(ours, plain, strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, b.abs().max().item()), check_stride=False)


@pytest.mark.parametrize('layer', [KANConv2d(2, 3, 3), KANLinear(2, 3), KANConv2d(2, 17, 3), SharedKANConv2d(3)],
                         ids=['spline_conv', 'linear', 'expand', 'shared'])
@pytest.mark.parametrize('change', ['zero', 'negated', 'subclass', 'expanded', 'every_second', 'channels_last', 'meta'])
@pytest.mark.parametrize('what', ['gradient', 'saved'])
def test_what_comes_back_in_the_backward_pass(layer, change, what):
    """Gradients of any kind, and saved tensors that somebody's hooks have packed in another way."""
    x = torch.randn(2, 2, 5, 5, requires_grad=True) if not isinstance(layer, KANLinear) else torch.randn(
        6, 2, requires_grad=True)

    def run():
        if what == 'saved':
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: LAYOUTS[change](t.detach())):
                return torch.autograd.grad(layer(x).sum(), x)[0]
        y = layer(x)
        hook = y.register_hook(LAYOUTS[change])
        grad = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).view(y.shape))[0]
        hook.remove()
        return grad

    found = []
    for kernels in ('1', '0'):
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            try:
                found.append(run())
            except (RuntimeError, NotImplementedError) as error:
                found.append(error)
    ours, plain = found
    assert isinstance(ours, Exception) == isinstance(plain, Exception), found
    if what == 'gradient' and not isinstance(plain, Exception) and not ours.is_meta:
        assert_close(ours.as_subclass(torch.Tensor), plain.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('make', [
    lambda: KANConv2d(2, 3, 3), lambda: KANConv2d(2, 17, 3), lambda: SharedKANConv2d(3)],
    ids=['spline_conv', 'expand', 'shared'])
def test_kernels_that_are_no_longer_wanted_in_the_backward_pass(make):
    layer, x = make(), torch.randn(2, 2, 5, 5, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    loss = layer(x).square().sum()
    with patch.dict(os.environ, RKAN_MM_KERNELS='0'):
        found = torch.autograd.grad(loss, inputs)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('outputs', [3, 17, 33])
def test_on_the_knots_of_piecewise_linear_functions(outputs):
    """As in PyTorch, where both sides of a bend count for nothing."""
    layer = KANConv2d(1, outputs, 1, basis=dict(type='BSpline', order=1, grid_size=4))
    nn.init.constant_(layer.basis_weight, 100.0)
    x, found = torch.linspace(-1, 1, 5).reshape(1, 1, 1, 5).requires_grad_(), []
    for kernels in ('1', '0'):
        with patch.dict(os.environ, RKAN_MM_KERNELS=kernels):
            found += torch.autograd.grad(layer(x).sum(), x)
    assert_close(*found, rtol=1e-4, atol=1e-4)


def test_the_gate_itself():
    x = torch.rand(4, 6)
    assert readable(x, nn.Parameter(x), x[:, ::2], x.T, None)
    assert pointer(x, 24).value == x.data_ptr()
    assert pointer(None, 24).value is None
    freed = torch.rand(4)
    freed.untyped_storage().resize_(0)
    for wrong in (x.double(), x[:0], x.to('meta'), x.to_sparse(), torch._neg_view(x), freed, x.int(),
                  torch._efficientzerotensor((4, 6)), x.as_subclass(type('Mine', (torch.Tensor,), {}))):
        assert not readable(wrong)
        with pytest.raises(RuntimeError, match='a kernel needs'):
            pointer(wrong, wrong.numel())
    for count in (23, 25):
        with pytest.raises(RuntimeError, match='a kernel needs 2[35] numbers of torch.float32 side by side'):
            pointer(x, count)
    with pytest.raises(RuntimeError, match='a kernel needs'):
        pointer(x.T, 24)


@pytest.mark.parametrize('make', [
    lambda: KANConv2d(2, 3, 3, padding=1), lambda: KANConv2d(2, 3, 3, basis=dict(type='BSpline', order=1)),
    *[lambda basis=basis: KANConv2d(2, 17, 3, basis=dict(type=basis)) for basis in (
        'BSpline', 'GaussianRBF', 'RSWAF', 'Chebyshev')],
    lambda: SharedKANConv2d(3, padding=1)], ids=['spline', 'order-1', 'BSpline', 'GaussianRBF', 'RSWAF', 'Chebyshev',
                                               'shared'])
@pytest.mark.parametrize(('value', 'every'), [(1e37, 324), (-1e37, 324), *itertools.product(
    [1e30, -1e30, 1e-44, 2.2e9, -100.0, float('inf'), -float('inf'), float('nan')], [324, 1])])
def test_numbers_of_any_size(make, value, every):
    """The same as in PyTorch while they are numbers; else no NaN is lost on the way."""
    layer, x = make(), torch.randn(2, 2, 9, 9)
    x.flatten()[7::every] = value
    with patch.dict(os.environ, RKAN_MM_KERNELS='0'):
        plain = [*outcome(layer, x.requires_grad_()), x.grad]
    x.grad = None
    ours = [*outcome(layer, x), x.grad]
    for a, b in zip(ours, plain, strict=True):
        if b.isfinite().all():
            assert_close(a, b, rtol=1e-3, atol=1e-3 * max(1.0, b.abs().max().item()))
        else:
            assert not a.isfinite().all()
    assert not (ours[0].isfinite() & ~plain[0].isfinite()).any()
