"""The convolution as one operation in graphs of `torch.compile`: here with PyTorch behind it, as no GPU is needed."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import RKANBlock, SharedKANConv2d
from rkan_mm.models.ops import shared_polynomial_conv, shared_polynomial_conv_op

NODE = 'shared_polynomial_conv2d'


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch):
    """Graphs are made as for a GPU."""
    monkeypatch.setattr(shared_polynomial_conv_op, '_is_on_gpu', lambda x: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, backend: str = 'aot_eager', **options):
    """A compiled copy, and the list of its nodes that are our operation, which a call fills."""
    nodes = []

    def look(graph, inputs):
        nodes.extend(node for node in graph.graph.nodes if NODE in str(node.target))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    return torch.compile(copy.deepcopy(model), backend=look, fullgraph=True, **options), nodes


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    model(x).square().mean().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize('last', [False, True])
def test_a_training_step_equals_the_eager_one(last):
    block, x = RKANBlock(8, 16, 2, last=True).double().float(), torch.randn(2, 8, 9, 11)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    other, nodes = compiled(block)
    found, expected = gradients(other, x), gradients(block, x)
    assert len(nodes) == 2
    assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_kernels_of_the_backward_pass_check_themselves(monkeypatch):
    asked, form = [], shared_polynomial_conv._form
    monkeypatch.setattr(shared_polynomial_conv, '_form',
                        lambda *args, **kwargs: asked.append(torch.is_grad_enabled()) or form(*args, **kwargs))
    gradients(compiled(SharedKANConv2d(3))[0], torch.randn(1, 3, 8, 8))
    assert asked == [False, True]


@pytest.mark.slow
def test_inductor_takes_it():
    block, x = RKANBlock(8, 16, 2, last=True), torch.randn(2, 8, 9, 11)
    other, nodes = compiled(block, 'inductor')
    assert_close(gradients(other, x), gradients(block, x), rtol=1e-3, atol=1e-5)
    block.eval(), other.eval()
    with torch.no_grad():
        assert_close(other(x), block(x), rtol=1e-3, atol=1e-5)
    assert len(nodes) == 2  # of the training step: without gradients the compiler's own kernels were faster


@pytest.mark.parametrize('basis', [dict(type='Chebyshev'), dict(type='Jacobi'), dict(type='Hermite', degree=2)],
                         ids=lambda basis: basis['type'])
@pytest.mark.parametrize('options', [{}, dict(with_base=False), dict(normalization='none'), dict(with_scaler=False)],
                         ids=str)
def test_every_polynomial_and_flag(basis, options):
    layer, x = SharedKANConv2d(3, (2, 1), (1, 0), basis=basis, **options), 0.5 * torch.randn(2, 3, 7, 8)
    other, nodes = compiled(layer)
    assert_close(gradients(other, x), gradients(layer, x), rtol=1e-4, atol=1e-6)
    assert len(nodes) == 1


def test_sizes_may_be_symbols():
    layer = SharedKANConv2d(3, 2, 1)
    other, nodes = compiled(layer, dynamic=True)
    for size in ((2, 3, 8, 9), (3, 3, 11, 7), (1, 3, 20, 20)):
        x = torch.randn(size)
        assert_close(other(x), layer(x), rtol=1e-4, atol=1e-6)
    assert len(nodes) <= 2


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('part', [slice(None), slice(3)], ids=['whole', 'part'])
def test_the_operation_is_what_pytorch_asks_of_one(layout, part):
    x = torch.randn(2, 4, 6, 7).contiguous(memory_format=layout)[:, part].requires_grad_()
    weight, base = (torch.randn(size, requires_grad=True) for size in ((4, 3, 3), (3, 3)))
    torch.library.opcheck(torch.ops.rkan_mm.shared_polynomial_conv2d.default,
                          (x, weight, base, None, None, True, [1, 2, 1, 1, 1, 1], torch.float32))


@pytest.mark.parametrize('strict', [False, True])
def test_exported_programs_do_not_need_this_package(strict):
    program = torch.export.export(SharedKANConv2d(3).eval(), (torch.randn(1, 3, 8, 8),), strict=strict)
    assert NODE not in str(program.graph)


def test_transforms_get_operations_of_pytorch():
    layer, x = SharedKANConv2d(3), torch.randn(4, 2, 3, 8, 8)
    found = torch.compile(torch.vmap(layer), backend='aot_eager')(x)
    assert_close(found, torch.stack([layer(each) for each in x]), rtol=1e-4, atol=1e-6)


def test_kernels_can_be_left_out(monkeypatch):
    monkeypatch.setenv('RKAN_MM_KERNELS', '0')
    other, nodes = compiled(SharedKANConv2d(3))
    other(torch.randn(1, 3, 8, 8))
    assert not nodes


@pytest.mark.parametrize('x', [torch.randn(1, 3, 2, 2), torch.randn(1, 3, 8, 8).double()], ids=['small', 'double'])
def test_what_does_not_fit_is_said_as_elsewhere(x):
    layer = SharedKANConv2d(3)
    other, _ = compiled(layer)
    with pytest.raises(RuntimeError):
        layer(x)
    with pytest.raises(RuntimeError):
        other(x)
