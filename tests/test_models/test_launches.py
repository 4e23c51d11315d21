"""At batch 1 a GPU waits for launches, not for arithmetic: how many there are, on fake CUDA tensors."""

from collections.abc import Callable

import pytest
import torch
from launches import fake_gpu, forms_of_a_gpu, launches

from rkan_mm.models import Addition, RKANBlock

pytest.importorskip('triton')


def fused_block(**args) -> tuple[RKANBlock, Callable[[], torch.Tensor]]:
    """A block of the last stage, with two KAN convolutions, and how to run it with its fusion."""
    block, x, out = RKANBlock(64, 128, 2, last=True, **args), torch.empty(1, 64, 14, 14), torch.empty(1, 128, 7, 7)
    return block, lambda: Addition(128)(out, block(x))


@pytest.mark.parametrize('basis', ['Chebyshev', 'Bernstein'])
def test_a_block_in_eval_mode(basis):
    with fake_gpu(), torch.no_grad():
        block, run = fused_block(basis=dict(type=basis, degree=3))
        block.eval()
        assert launches(run) == [*['convolution', 'silu', '_forward', 'cudnn_batch_norm'] * 2, 'add']


def test_a_block_in_training():
    with fake_gpu():
        _, run = fused_block()
        found = launches(run)
        assert len(found) <= 12, found


def test_the_backward_pass_of_a_block():
    with forms_of_a_gpu():
        block, run = fused_block()
        forward = [*launches(run), 'sum']
        found = launches(lambda: run().sum().backward())[len(forward):]
    layer = ['native_batch_norm_backward', '_backward_input', '_backward_weight', '_finish', 'silu_backward',
             'convolution_backward']
    assert found == ['ones_like', *layer * 2]
    assert all(parameter.grad is not None for parameter in block.parameters())
