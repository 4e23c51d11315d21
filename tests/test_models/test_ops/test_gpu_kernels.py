"""Each kernel on a GPU against PyTorch in double precision on the CPU, through the layers that use it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import nn

from rkan_mm.models import KANConv2d, KANLinear, RKANBlock, SharedKANConv2d
from rkan_mm.models.ops import fused, triton_launch
from rkan_mm.models.ops.definition import expand_by_definition
from rkan_mm.models.ops.functions import Functions

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures('without_tf32')]
SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)
BASES = [dict(type='BSpline', order=1), dict(type='BSpline', order=2), dict(type='BSpline'),
         dict(type='GaussianRBF'), dict(type='RSWAF'), dict(type='Chebyshev', degree=3)]
DTYPES = [SINGLE, HALF, BRAIN]


def in_turn(names: str, first: Sequence, second: Sequence, third: Sequence) -> pytest.MarkDecorator:
    """Each pair of the first two, with one of the third after the other: every case compiles kernels of its own."""
    found = [(a, b, third[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)]
    return pytest.mark.parametrize(names.split(), found, ids=str)


@contextmanager
def recorded():
    """The names of the kernels that are launched meanwhile, by their module."""
    from rkan_mm.models.ops import expand_triton, fused_triton, shared_polynomial_conv_triton
    names = []
    with ExitStack() as stack:
        for module in (expand_triton, fused_triton, shared_polynomial_conv_triton):
            def launch(call, *tensors, real=module.launch, module=module):
                names.append(f'{module.__name__.rpartition(".")[2]}.{call.kernel.fn.__name__}')
                real(call, *tensors)
            stack.enter_context(patch.object(module, 'launch', launch))
        yield names


def results(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(grad.to(y))
    return dict(y=y.detach(), x=x.grad, **{name: p.grad for name, p in layer.named_parameters()})


def check(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype, kernels: set[str]) -> None:
    """Values and all gradients; under autocast but for single precision. The kernels named must have run."""
    exact = copy.deepcopy(layer).double()
    grad = torch.randn(exact(x.double()).shape)
    expected = results(exact, x.double(), grad)
    layer, x = layer.cuda(), x.cuda()
    with torch.autocast('cuda', dtype, enabled=dtype != SINGLE), recorded() as names:
        results(layer, x, grad)  # each variant checks itself at its first call
        layer.zero_grad()
        names.clear()
        found = results(layer, x, grad)
    assert kernels <= set(names), names
    assert all(triton_launch._known.values()), [case for case, right in triton_launch._known.items() if not right]
    tolerance = 1e-5 if dtype == SINGLE else 4 * torch.finfo(dtype).eps
    for name, right in expected.items():
        error = (found[name].double().cpu() - right).norm() / right.norm()
        assert error <= tolerance, f'{name}: {error:.1e}'


@in_turn('case dtype layout', [(2, 1, (13, 7)), (3, 2, (14, 14)), (6, 3, (9, 11))], DTYPES, list(LAYOUTS))
def test_shared_polynomial_conv(case, layout, dtype):
    degree, stride, size = case
    layer = SharedKANConv2d(3, stride, 1, basis=dict(type='Chebyshev', degree=degree))
    x = torch.randn(3, 32, *size).to(memory_format=LAYOUTS[layout])
    kernels = 'forward', 'backward_input', 'backward_weight', 'finish'
    check(layer, x, dtype, {f'shared_polynomial_conv_triton.{name}' for name in kernels})


@in_turn('dtype training layout', DTYPES, [False, True], list(LAYOUTS))
def test_a_block(training, layout, dtype):
    """Whose activations, and in eval mode norms, are in the kernels of its convolutions."""
    block = RKANBlock(16, 32, 2, last=True).train(training)
    for norm in (block.norm1, block.norm2):
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            nn.init.uniform_(t, 0.5, 1.5)
    x, grad = torch.randn(4, 16, 14, 13).to(memory_format=LAYOUTS[layout]), torch.randn(4, 32, 7, 7)
    exact = copy.deepcopy(block).double()
    block, place = block.cuda(), x.cuda()
    with torch.autocast('cuda', dtype, enabled=dtype != SINGLE), recorded() as names:
        if training:
            expected = results(exact, x.double(), grad)
            results(block, place, grad)  # each variant checks itself at its first call
            block.zero_grad()
            names.clear()
            found = results(block, place, grad)
        else:
            with torch.no_grad():
                expected, _ = dict(y=exact(x.double())), block(place)
                names.clear()
                found = dict(y=block(place))
    kernels = [name.rpartition('.')[2] for name in names]
    assert kernels == ['forward'] * 2 + ['backward_input', 'backward_weight', 'finish'] * (2 * training), names
    tolerance = 2e-4 if dtype == SINGLE else 30 * torch.finfo(dtype).eps
    for name, right in expected.items():
        error = (found[name].double().cpu() - right).norm() / right.norm()
        assert error <= tolerance, f'{name}: {error:.1e}'


@in_turn('basis dtype layout', BASES, DTYPES, list(LAYOUTS))
def test_expand(basis, dtype, layout, monkeypatch):
    monkeypatch.setattr(fused, 'FORCED', False)
    x = torch.randn(2, 6, 9, 13).to(memory_format=LAYOUTS[layout])
    kernels = {'expand_triton._forward', 'expand_triton._backward'}
    check(KANConv2d(6, 5, 3, padding=1, basis=basis), x, dtype, kernels)
    if layout == 'contiguous':
        check(KANLinear(13, 7, basis=basis), torch.randn(2, 11, 13), dtype, kernels)


FUSED = {f'fused_triton.{name}' for name in ('pack', 'forward', 'backward_input', 'backward_weight', 'finish')}


@in_turn('basis case dtype', BASES, [(3, 1), (3, 2), (1, 1)], [HALF, BRAIN])
def test_fused_conv(basis, dtype, case, monkeypatch):
    kernel, stride = case
    monkeypatch.setattr(fused, 'FORCED', True)
    for layout, channels in (('contiguous', 32), ('channels_last', 29)):
        x = torch.randn(2, channels, 11, 14).to(memory_format=LAYOUTS[layout])
        check(KANConv2d(channels, 40, kernel, stride, kernel // 2, basis=basis), x, dtype, FUSED)


@in_turn('basis features dtype', BASES, [(130, 70)], [HALF, BRAIN])
def test_fused_linear(basis, dtype, features, monkeypatch):
    monkeypatch.setattr(fused, 'FORCED', True)
    check(KANLinear(*features, basis=basis), torch.randn(3, 100, features[0]), dtype, FUSED)


def test_fused_in_tf32(monkeypatch):
    monkeypatch.setattr(fused, 'FORCED', True)
    torch.backends.cuda.matmul.allow_tf32 = True
    layer, x = KANLinear(64, 64, basis=dict(type='BSpline')), torch.randn(300, 64)
    right = copy.deepcopy(layer).double()(x.double())
    with recorded() as names:
        y = layer.cuda()(x.cuda())
    assert 'fused_triton.forward' in names
    assert (y.double().cpu() - right).norm() <= 2e-3 * right.norm()


@pytest.mark.parametrize('forced', [True, False])
def test_two_runs_give_the_same_bits(forced, monkeypatch, deterministic):
    monkeypatch.setattr(fused, 'FORCED', forced)
    layer, x = KANConv2d(64, 64, 3, padding=1).cuda(), torch.randn(8, 64, 28, 28, device='cuda')
    runs = []
    for _ in range(2):
        layer.zero_grad()
        with torch.autocast('cuda', HALF):
            runs.append({name: t.clone() for name, t in results(layer, x, torch.ones(8, 64, 28, 28)).items()})
    assert all(a.equal(runs[1][name]) for name, a in runs[0].items())


def test_beyond_32_bits():
    """2^31 elements and more, three values of each."""
    from rkan_mm.models.ops import expand_triton as kernels
    rows, size = 2_150_000, 1000
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip('needs 40 GiB of GPU memory')
    functions = Functions('gaussian', 2, torch.linspace(-1, 1, 2, device='cuda')[None], torch.ones(1, device='cuda'))
    x = torch.zeros(rows, size, dtype=HALF, device='cuda')
    x[-1] = torch.randn(size)
    y = kernels.forward(x, functions, ('silu', False, False), HALF)
    leaf = x[-1:].double().requires_grad_()
    right = expand_by_definition(leaf, functions, 'silu', False, False)
    torch.testing.assert_close(y[-1:].double(), right.detach(), rtol=1e-3, atol=1e-3)
    right.sum().backward()
    result = kernels.backward(x, functions, ('silu', False, False), torch.ones_like(y))
    torch.testing.assert_close(result[-1:].double(), leaf.grad, rtol=1e-3, atol=1e-3)
