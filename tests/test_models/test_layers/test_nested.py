"""Nested tensors, which PyTorch's linear layer takes."""

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.models import KANLinear


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


def test_tensors_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied|Sizes of tensors must match'):
        KANLinear(4, 3)(torch.nested.nested_tensor([torch.randn(3, 5), torch.randn(2, 5)]))
