import copy
import os
import pickle

import pytest
import torch
from shared_polynomial_cases import CASES, check, settings, tensors, values_and_gradients
from torch.testing import assert_close

from rkan_mm.models import SharedKANConv2d
from rkan_mm.models.ops import compiled, identity, shared_polynomial_conv2d
from rkan_mm.models.ops import shared_polynomial_conv_cpu as cpu
from rkan_mm.models.ops.shared_polynomial_conv_torch import shared_polynomial_conv2d_torch

cases = pytest.mark.parametrize('case', CASES.values(), ids=CASES.keys())


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def kernels():
    if not cpu.is_there():
        pytest.skip('no compiled kernels')


@pytest.fixture
def taken(monkeypatch, kernels) -> list[str]:
    """Which functions of the kernels were called."""
    calls = []

    def recorded(name):
        function = getattr(cpu, name)
        return lambda *args: (calls.append(name), function(*args))[1]

    for name in ('forward', 'backward'):
        monkeypatch.setattr(cpu, name, recorded(name))
    return calls


def test_kernels_are_there_where_a_compiler_is():
    wanted = compiled.shutil.which('c++') is not None and os.environ.get('RKAN_MM_KERNELS') != '0'
    assert cpu.is_there() == wanted


@cases
def test_equals_the_oracle(case, threads, taken):
    inputs = tensors(**case)
    before = [t if t is None else t.clone() for t in inputs]
    check(shared_polynomial_conv2d, inputs, settings(**case))
    assert taken == ['forward', 'backward']
    assert all(t is None or t.equal(b) for t, b in zip(inputs, before, strict=True))


@cases
@pytest.mark.parametrize('channels', [32, 20])
def test_channels_last(case, channels, taken):
    shape = case.get('shape', (2, 3, 7, 9))
    case = dict(case, shape=(min(2, shape[0]), channels, shape[2], min(shape[3], 200)))
    x, *weights = tensors(**case)
    x = x.contiguous(memory_format=torch.channels_last)
    results = check(shared_polynomial_conv2d, [x, *weights], settings(**case))
    apart = check(shared_polynomial_conv2d, [x.contiguous(), *weights], settings(**case))
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(results, apart, rtol=1e-4, atol=1e-4)
    assert taken == ['forward', 'backward'] * 2


@pytest.mark.parametrize('squash', [True, False])
@pytest.mark.parametrize('shape', [(64, 70, 7, 7), (2, 2, 224, 224)])
def test_weight_gradients_of_many_elements(shape, squash, kernels):
    case = dict(shape=shape, degree=3, stride=(2, 2), squash=squash)
    check(shared_polynomial_conv2d, tensors(**case), settings(**case))


@pytest.mark.parametrize('layout', [
    lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), lambda x: x.repeat_interleave(2, 3)[..., ::2],
    lambda x: x[:1].expand(3, -1, -1, -1), lambda x: x[:, 1:],
    lambda x: x.contiguous(memory_format=torch.channels_last),
], ids=['transposed', 'sliced', 'expanded', 'offset', 'channels_last'])
def test_layouts(layout, taken):
    x, *weights = tensors(shape=(3, 4, 8, 9))
    x = layout(x)
    y = check(shared_polynomial_conv2d, [x, *weights], settings())[0]
    assert y.stride() == shared_polynomial_conv2d_torch(x, *weights, **settings()).stride()
    assert taken == ['forward', 'backward']
    results = values_and_gradients(shared_polynomial_conv2d, [x, *(w.mT.contiguous().mT for w in weights)], settings())
    assert_close(results, values_and_gradients(shared_polynomial_conv2d, [x, *weights], settings()), rtol=0, atol=0)


def test_gradients_that_are_expanded(kernels):
    x, weight, base_weight = tensors()
    x.requires_grad_()
    shared_polynomial_conv2d(x, weight, base_weight, padding=(1, 1)).sum().backward()
    result, x.grad = x.grad, None
    shared_polynomial_conv2d_torch(x, weight, base_weight, padding=(1, 1)).sum().backward()
    assert_close(result, x.grad)


@pytest.mark.parametrize('needed', [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize('squash', [True, False])
def test_a_part_of_the_gradients(needed, squash, taken):
    inputs, options = tensors(degree=3), settings(squash=squash)
    every = values_and_gradients(shared_polynomial_conv2d, inputs, options)[1:]
    leaves = [t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
    y = shared_polynomial_conv2d(*leaves, **options)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    for leaf, need, grad in zip(leaves, needed, every, strict=True):
        assert leaf.grad.equal(grad) if need else leaf.grad is None
    assert len(taken) == 4


@cases
def test_the_same_bits_for_any_number_of_threads(case, kernels):
    inputs, options, results = tensors(**case), settings(**case), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(shared_polynomial_conv2d, inputs, options))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize('degree', [1, 2, 3, 4])
@pytest.mark.parametrize('base', [True, False])
@pytest.mark.parametrize('size', [(7, 7), (14, 14), (25, 42)])
def test_keeps_the_input_alone(degree, base, size, kernels):
    x, *weights = (t if t is None else t.requires_grad_() for t in tensors((2, 64, *size), degree=degree, base=base))
    saved = {}

    def pack(t):
        saved[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        shared_polynomial_conv2d(x, *weights, padding=(1, 1))
    assert sum(saved.values()) <= 1.05 * x.nbytes


def test_tanh_and_its_derivative_to_a_few_units_in_the_last_place(kernels):
    x = torch.cat([torch.logspace(-38, 2, 20000), torch.linspace(0, 12, 20000)])
    x = torch.cat([x, -x]).view(1, 1, -1, 1000).requires_grad_()
    weight = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    y = shared_polynomial_conv2d(x, weight)
    expected = x.double().tanh()
    assert ((y - expected).abs() <= 2e-7 * expected.abs()).all()
    assert y.abs().max() == 1
    y.sum().backward()
    assert_close(x.grad.double(), 1 - expected.detach()**2, rtol=1e-6, atol=4e-7)


def test_what_is_not_finite(kernels):
    x, weight, base_weight = tensors(shape=(1, 3, 9, 9))
    x[0, 0, 4, 4], x[0, 1, 4, 4], x[0, 1, 0, 0] = torch.nan, torch.inf, -torch.inf
    for base in (base_weight, None):
        y = shared_polynomial_conv2d(x, weight, base, padding=(1, 1))
        assert_close(y, shared_polynomial_conv2d_torch(x, weight, base, padding=(1, 1)), equal_nan=True)
        assert y[0, 0].isnan().sum() == 9
    *_, grad = values_and_gradients(shared_polynomial_conv2d, [x, weight, base_weight], settings())
    assert grad.isnan().any()


@pytest.mark.parametrize('scale', [1e-6, 30.0, 1e6])
def test_small_and_large_values(scale, kernels):
    check(shared_polynomial_conv2d, tensors(scale=scale, degree=3), settings())


def test_an_empty_batch():
    x, *weights = (t.requires_grad_() for t in tensors((0, 3, 7, 7)))
    y = shared_polynomial_conv2d(x, *weights, padding=(1, 1))
    assert y.shape == (0, 3, 7, 7)
    y.sum().backward()
    assert all((w.grad == 0).all() for w in weights)


def test_a_kernel_larger_than_the_input():
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        shared_polynomial_conv2d(*tensors(shape=(1, 1, 2, 2)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [True, False])
def test_half_precision(dtype, autocast, taken):
    inputs, options = tensors(degree=3), settings()
    inputs[1:] = (t / 4 for t in inputs[1:])
    given = [t.to(dtype) for t in inputs] if not autocast else [inputs[0].to(dtype), *inputs[1:]]
    with torch.autocast('cpu', dtype, enabled=autocast):
        results = values_and_gradients(shared_polynomial_conv2d, given, options)
    assert taken == ['forward', 'backward']
    assert [r.dtype for r in results] == [dtype, *(t.dtype for t in given)]
    right = values_and_gradients(shared_polynomial_conv2d_torch, [t.double() for t in given], options)
    for result, expected in zip(results, right, strict=True):
        assert ((result - expected).norm() / expected.norm()) < 2 * torch.finfo(dtype).eps


def test_a_second_derivative(kernels):
    options = settings(stride=(2, 2))

    def second(form, inputs):
        x, weight, base_weight = (t.detach().requires_grad_() for t in inputs)
        y = form(x, weight, base_weight, **options)
        grads = torch.autograd.grad(y.sin().sum(), (x, weight, base_weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight, base_weight))

    inputs = tensors(degree=3)
    for result, right in zip(second(shared_polynomial_conv2d, inputs),
                             second(shared_polynomial_conv2d_torch, [t.double() for t in inputs]), strict=True):
        assert ((result - right).norm() / right.norm()) < 1e-5


def test_gradgradcheck_in_double_precision():
    inputs = [t.double().requires_grad_() for t in tensors(shape=(1, 2, 4, 4))]
    assert torch.autograd.gradgradcheck(lambda *t: shared_polynomial_conv2d(*t, padding=(1, 1)), inputs)


@pytest.mark.parametrize('transform', [
    lambda f, x: torch.func.vmap(f)(x[None])[0],
    lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    lambda f, x: torch.func.jacrev(f)(x[:1, :1, :3, :3]),
    lambda f, x: torch.jit.trace(f, x)(x),
    lambda f, x: torch.fx.experimental.proxy_tensor.make_fx(f)(x)(x),
    lambda f, x: torch.compile(f, backend='eager', fullgraph=True)(x),
    lambda f, x: torch.autograd.functional.hessian(lambda x: f(x).sum(), x[:1, :1, :3, :3]),
], ids=['vmap', 'grad', 'jvp', 'jacrev', 'trace', 'make_fx', 'compile', 'hessian'])
def test_transforms(transform, kernels):
    x, *weights = tensors(degree=3)

    def run(form):
        return transform(lambda x: form(x, *weights, padding=(1, 1)), x)

    assert_close(run(shared_polynomial_conv2d), run(shared_polynomial_conv2d_torch), rtol=1e-4, atol=1e-5)


def test_forward_mode(kernels):
    x, *weights = tensors()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(shared_polynomial_conv2d(dual, *weights)).tangent
    assert_close(tangent, torch.func.jvp(lambda x: shared_polynomial_conv2d_torch(x, *weights), (x,),
                                         (torch.ones_like(x),))[1])


@pytest.mark.parametrize('change', [
    dict(normalize=torch.arctan), dict(base_act=torch.nn.functional.silu), dict(degree=7), dict(dtype=torch.float64),
], ids=str)
def test_what_only_pytorch_does(change, taken):
    inputs = [t.to(change.get('dtype')) for t in tensors(degree=change.get('degree', 2))]
    options = settings() | {k: v for k, v in change.items() if k in ('normalize', 'base_act')}
    results = values_and_gradients(shared_polynomial_conv2d, inputs, options)
    assert_close(results, values_and_gradients(shared_polynomial_conv2d_torch, inputs, options), rtol=0, atol=0)
    assert taken == []


def test_tensors_of_other_kinds(taken):
    class Mine(torch.Tensor):
        pass

    x, *weights = tensors()
    assert type(shared_polynomial_conv2d(x.as_subclass(Mine), *weights)) is Mine
    assert shared_polynomial_conv2d(*(t.to('meta') for t in (x, *weights))).shape == (2, 3, 5, 7)
    assert taken == []


def test_switched_off(taken, monkeypatch):
    monkeypatch.setenv('RKAN_MM_KERNELS', '0')
    check(shared_polynomial_conv2d, tensors(), settings(), tolerance=1e-5)
    assert taken == []


@pytest.mark.parametrize('broken', [dict(CXX='false'), dict(CXX='/nowhere/c++')], ids=str)
def test_without_a_compiler(broken, taken, monkeypatch, tmp_path, caplog):
    for name, value in dict(broken, XDG_CACHE_HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    compiled._load.cache_clear()
    check(shared_polynomial_conv2d, tensors(), settings(), tolerance=1e-5)
    assert taken == []
    compiled._load.cache_clear()


def test_kernels_that_are_wrong_are_not_taken(kernels, monkeypatch):
    class Wrong:
        def __getattr__(self, name):
            return lambda *args: 1

    assert not cpu._is_right(Wrong())


def test_modules_are_copied_and_pickled(kernels):
    conv = SharedKANConv2d(3, padding=1)
    x = torch.randn(1, 2, 7, 7)
    y = conv(x)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other(x).equal(y)
    assert pickle.loads(pickle.dumps(identity)) is identity


def test_the_output_can_be_changed_in_place(kernels):
    x, *weights = (t.requires_grad_() for t in tensors())
    shared_polynomial_conv2d(x, *weights).mul_(2).sum().backward()
    result = x.grad.clone()
    x.grad = None
    (shared_polynomial_conv2d_torch(x, *weights) * 2).sum().backward()
    assert_close(result, x.grad)


def test_a_changed_input_is_noticed(kernels):
    x, *weights = tensors()
    y = shared_polynomial_conv2d(x, weights[0].requires_grad_(), weights[1])
    x.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()

