"""At batch 1 a GPU waits for launches, not for arithmetic: how many there are, on fake CUDA tensors."""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from launches import fake_gpu, forms_of_a_gpu, launches, moved

from rkan_mm.models import Addition, KANConv2d, KANLinear, RKANBlock
from rkan_mm.models.ops import fused

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
        assert launches(run) == [*['convolution', 'forward'] * 2, 'add']


@pytest.mark.parametrize('name', ['act', 'norm_before1', 'kan1', 'norm1'])
def test_a_module_that_somebody_watches_is_called(name):
    seen = []
    with fake_gpu(), torch.no_grad():
        block, run = fused_block()
        block.eval()
        getattr(block, name).register_forward_hook(lambda *_: seen.append(name))
        launches(run)
    assert seen == [name] * (2 if name == 'act' else 1)


def test_a_block_whose_parameters_are_attributes():
    """As FSDP makes them of its flat ones."""
    with fake_gpu(), torch.no_grad():
        block, run = fused_block()
        block.eval()
        for module in block.modules():
            for name, value in list(module._parameters.items()):
                if value is not None:
                    delattr(module, name)
                    setattr(module, name, value.detach())
        assert launches(run) == [*['convolution', 'forward'] * 2, 'add']


def test_a_block_without_activation():
    with fake_gpu(), torch.no_grad():
        block, run = fused_block(act_cfg=None)
        block.eval()
        assert launches(run) == [*['convolution', 'forward', 'cudnn_batch_norm'] * 2, 'add']


def test_a_block_in_training():
    with fake_gpu():
        _, run = fused_block()
        found = launches(run)
        assert found.count('forward') == 2
        assert len(found) <= 9, found


def test_the_backward_pass_of_a_block():
    with forms_of_a_gpu():
        block, run = fused_block()
        forward = [*launches(run), 'sum']
        found = launches(lambda: run().sum().backward())[len(forward):]
    layer = ['native_batch_norm_backward', 'backward_input', 'backward_weight', 'finish', 'convolution_backward']
    assert found == ['ones_like', *layer * 2]
    assert all(parameter.grad is not None for parameter in block.parameters())


LAYERS = dict(
    conv=(lambda: KANConv2d(64, 64, 3, padding=1), (32, 64, 56, 56)),
    chebyshev=(lambda: KANConv2d(64, 64, 3, padding=1, basis=dict(type='Chebyshev')), (32, 64, 56, 56)),
    linear=(lambda: KANLinear(512, 512), (4096, 512)),
    gaussian=(lambda: KANLinear(512, 512, basis=dict(type='GaussianRBF')), (4096, 512)))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', LAYERS)
def test_kan_layers(name, training, monkeypatch):
    """The fused form, in half precision and channels_last: nothing but the weights and all the rest."""
    monkeypatch.setattr(fused, 'FORCED', True)
    build, shape = LAYERS[name]
    layer = build().half().train(training)
    with fake_gpu(), torch.set_grad_enabled(training):
        layer, x = moved(layer), torch.empty(shape, dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
        assert launches(lambda: layer(x)) == ['pack', 'forward']


@pytest.mark.parametrize(('outputs', 'rows', 'training', 'is_fused'), [
    (128, 4096, False, True), (129, 4096, False, False), (128, 4095, False, False), (128, 4096, True, False)])
def test_where_the_fused_form_is_faster(outputs, rows, training, is_fused):
    layer = KANLinear(64, outputs).half().train(training)
    with fake_gpu(), torch.set_grad_enabled(training):
        layer, x = moved(layer), torch.empty(rows, 64, dtype=torch.float16)
        assert ('pack' in launches(lambda: layer(x))) == is_fused


@pytest.mark.parametrize(('name', 'most'), [('conv', 9), ('chebyshev', 8), ('linear', 4), ('gaussian', 4)])
def test_kan_layers_by_planes(name, most, monkeypatch):
    """Where the fused kernels are not taken, as in full single precision."""
    monkeypatch.setattr(fused, 'FORCED', False)
    build, shape = LAYERS[name]
    layer = build().eval()
    with fake_gpu(), torch.no_grad():
        layer, x = moved(layer), torch.empty(shape)
        found = launches(lambda: layer(x))
    assert '_forward' in found
    assert len(found) <= most, found


def test_a_second_call_of_the_same_sizes_prepares_nothing():
    """Sizes, tiles and constants of a launch take longer in Python than a small kernel on a GPU."""
    kernels = pytest.importorskip('rkan_mm.models.ops.shared_polynomial_conv_triton')
    with fake_gpu(), torch.no_grad():
        block, run = fused_block()
        block.eval()
        launches(run)
        with patch.object(kernels, '_constants', None):
            assert launches(run).count('forward') == 2


def test_full_single_precision_is_not_asked_about_fused_kernels(monkeypatch):
    """There are none without TF32, and the rest of the questions take longer than the layer."""
    layer = KANLinear(8, 8)
    monkeypatch.setattr(type(layer.basis), 'functions', None)
    assert layer.fused(torch.rand(2, 8, 1, 1), tf32=False) is None
