"""Nested tensors, which PyTorch's linear layer takes."""

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.models import KANLinear
from rkan_mm.models.layers.locked import Fixed, lock


@pytest.mark.parametrize('layout', [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize('args', [{}, dict(basis=dict(type='Chebyshev')), dict(memory='low', normalization='none')],
                         ids=str)
@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
def test_as_the_linear_layer(layout, args):
    """Gradients included."""
    layer, parts = KANLinear(4, 3, **args), [torch.randn(3, 4), torch.randn(5, 4)]
    y = layer(torch.nested.nested_tensor(parts, layout=layout))
    for out, part in zip(y.unbind(), parts, strict=True):
        assert_close(out, layer(part))
    found = torch.autograd.grad(sum(out.square().sum() for out in y.unbind()), list(layer.parameters()))
    expected = torch.autograd.grad(layer(torch.cat(parts)).square().sum(), list(layer.parameters()))
    assert_close(found, expected)


@pytest.mark.parametrize('locked', [False, True])
@pytest.mark.parametrize('compiled', [False, True])
def test_jagged_ones_in_a_graph_and_with_formulas(locked, compiled):
    layer, parts = KANLinear(4, 3), [torch.randn(3, 2, 4), torch.randn(5, 2, 4)]
    if locked:
        lock(layer, {(1, 2): Fixed('sin', (1.0, 2.0, 0.3, 0.1))})
    run = torch.compile(layer, backend='eager', fullgraph=True) if compiled else layer
    y = run(torch.nested.nested_tensor(parts, layout=torch.jagged))
    for out, part in zip(y.unbind(), parts, strict=True):
        assert_close(out, layer(part))


def test_jagged_ones_without_rows_are_an_error():
    """They differ in their second dimension, and call themselves contiguous."""
    x = torch.nested.nested_tensor([torch.randn(3, 2, 4), torch.randn(3, 5, 4)], layout=torch.jagged)
    with pytest.raises((ValueError, RuntimeError)):
        KANLinear(4, 3)(x)


def test_tensors_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied|Sizes of tensors must match'):
        KANLinear(4, 3)(torch.nested.nested_tensor([torch.randn(3, 5), torch.randn(2, 5)]))
