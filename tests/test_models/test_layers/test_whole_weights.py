"""Norms of weights and layouts in memory, as other libraries apply them to layers."""

import copy
import warnings

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch.nn.utils import prune as torch_prune
from torch.testing import assert_close

from rkan_mm.models import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, KANLinear, SharedKANConv2d

LAYERS = dict(
    conv1d=(lambda **a: KANConv1d(4, 6, 3, **a), (2, 4, 9)), conv2d=(lambda **a: KANConv2d(4, 6, 3, **a), (2, 4, 9, 8)),
    pointwise=(lambda **a: KANConv2d(4, 6, 1, **a), (2, 4, 9, 8)),
    conv3d=(lambda **a: KANConv3d(4, 6, 3, **a), (2, 4, 5, 6, 7)),
    transposed=(lambda **a: KANConvTranspose2d(4, 6, 3, **a), (2, 4, 9, 8)),
    linear=(lambda **a: KANLinear(4, 6, **a), (5, 4)), shared=(lambda **a: SharedKANConv2d(3, **a), (2, 4, 9, 8)))
layers = pytest.mark.parametrize('kind', LAYERS)
NORMS = dict(spectral_norm=spectral_norm, weight_norm=weight_norm,
             parametrized_spectral_norm=parametrizations.spectral_norm,
             parametrized_weight_norm=parametrizations.weight_norm, orthogonal=parametrizations.orthogonal,
             pruned=lambda layer: torch_prune.l1_unstructured(layer, 'weight', 0.5),
             pruned_channels=lambda layer: torch_prune.ln_structured(layer, 'weight', 0.5, 2, 0))


@layers
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('how', ['built', 'copied', 'loaded', 'beside_another'])
def test_norms_of_a_part_of_the_weights_are_refused_and_leave_the_layer_as_it_was(kind, norm, how):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.rand(shape)
    if how == 'copied':
        layer = copy.deepcopy(layer)
    elif how == 'loaded':
        layer.load_state_dict(make().state_dict(), assign=True)
    elif how == 'beside_another':
        parametrizations.weight_norm(layer, layer.coefficients_name if kind != 'shared' else 'base_weight')
    layer.eval()
    expected, before, hooks = layer(x), dict(layer.named_parameters()), dict(layer._forward_pre_hooks)
    buffers, cls = dict(layer.named_buffers()), type(layer)
    with (warnings.catch_warnings(action='ignore'),
          pytest.raises(TypeError, match='KAN.*: a spectral norm, weight norm, pruning or other')):
        NORMS[norm](layer)
    after = dict(layer.named_parameters())
    assert list(after) == list(before)
    assert all(value is before[name] for name, value in after.items())
    assert dict(layer._forward_pre_hooks) == hooks
    assert list(dict(layer.named_buffers())) == list(buffers)
    assert type(layer) is cls
    assert layer(x).equal(expected)


def test_ordinary_layers_have_their_norms_and_layers_without_a_base_branch_none():
    for norm in NORMS.values():
        layer = nn.Linear(3, 3)
        weight, x = layer.weight.detach().clone(), torch.eye(3)
        with warnings.catch_warnings(action='ignore'):
            norm(layer)(x)
        assert layer.weight.shape == weight.shape
        with warnings.catch_warnings(action='ignore'), pytest.raises((TypeError, ValueError)):
            norm(KANLinear(3, 3, with_base=False))


@pytest.mark.parametrize('kind', ['conv2d', 'linear', 'shared'])
def test_conversions_that_swap_tensors(kind):
    """Nothing may hold parameters weakly: then torch could not swap them, as it does with those of FSDP2."""
    make, shape = LAYERS[kind]
    layer, x = make(basis=dict(type='BSpline')), torch.rand(shape)
    layer.refine_grid(9)
    expected = layer(x).detach()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert_close(layer.double()(x.double()).float(), expected, rtol=1e-3, atol=1e-4)
        layer.float().load_state_dict(layer.double().state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    layer.float()(x).sum().backward()


def test_what_torch_computes_of_coefficients_is_not_refitted():
    """Grids change coefficients; those that come from other parameters would be overwritten at the next call."""
    layer, x = KANLinear(4, 6), 3 * torch.randn(9, 4)
    torch_prune.l1_unstructured(layer, 'basis_weight', 0.5)
    expected = layer(x)
    for change in (lambda: layer.refine_grid(10), lambda: layer.update_grid(x)):
        with pytest.raises(TypeError, match='its basis_weight are computed from others'):
            change()
    assert layer(x).equal(expected)
    torch_prune.remove(layer, 'basis_weight')
    layer.refine_grid(10)
    assert_close(layer(x), expected, rtol=0, atol=1e-2)


def test_norms_by_config_and_by_name():
    with pytest.raises(TypeError, match='with_spectral_norm=False'):
        ConvModule(3, 4, 3, conv_cfg=dict(type='KANConv2d'), with_spectral_norm=True)
    layer = parametrizations.weight_norm(KANConv2d(3, 4, 3), 'basis_weight')  # who names it means it
    assert layer(torch.rand(1, 3, 5, 5)).shape == (1, 4, 3, 3)


def test_coefficients_that_are_computed_of_a_buffer():
    layer, x = KANLinear(3, 4), torch.rand(2, 3)
    expected, weight = layer(x), layer.basis_weight.detach()
    del layer.basis_weight
    layer.register_buffer('basis_weight', weight)
    parametrize.register_parametrization(layer, 'basis_weight', nn.Identity())
    assert_close(layer(x), expected)


@layers
@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev', 'GaussianRBF'])
@pytest.mark.parametrize('what', ['layer', 'input', 'both'])
def test_channels_last(kind, basis, what):
    make, shape = LAYERS[kind]
    layer, x = make(basis=dict(type=basis)), torch.rand(shape)
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
    plain = {'conv2d': nn.Conv2d(4, 6, 3), 'pointwise': nn.Conv2d(4, 6, 1), 'conv3d': nn.Conv3d(4, 6, 3),
             'transposed': nn.ConvTranspose2d(4, 6, 3), 'shared': nn.Conv2d(4, 4, 3, groups=4)}.get(kind)
    other, y = copy.deepcopy(layer), x.clone()
    if what != 'input':
        for each in (other, *((plain,) if plain else ())):
            each.to(memory_format=layout or torch.channels_last)
    if what != 'layer' and layout:
        y = y.contiguous(memory_format=layout)
    other.prune(0.1)
    layer.prune(0.1)
    out, expected = other(y), layer(x)
    assert_close(out, expected, rtol=1e-4, atol=1e-5)
    if plain and (kind not in ('shared', 'pointwise') or what != 'layer'):  # whose weights have no layout of their own
        assert out.is_contiguous(memory_format=layout) >= plain(y).is_contiguous(memory_format=layout)
    grad = torch.rand_like(expected)
    out.backward(grad)
    expected.backward(grad)
    for ours, right in zip(other.parameters(), layer.parameters(), strict=True):
        assert_close(ours.grad, right.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('args', [{}, dict(with_base=False)], ids=str)
@pytest.mark.parametrize('kind', ['conv2d', 'conv3d', 'transposed', 'shared'])
@pytest.mark.parametrize('around', [nn.Sequential, lambda layer: layer], ids=['model', 'layer'])
def test_torchs_helpers_for_layouts(kind, args, around):
    make, shape = LAYERS[kind]
    layer, x = make(**args), torch.rand(shape)
    expected = layer(x)
    for convert, layout in ((nn.utils.convert_conv2d_weight_memory_format, torch.channels_last),
                            (nn.utils.convert_conv3d_weight_memory_format, torch.channels_last_3d)):
        if kind == 'conv3d' or layout is torch.channels_last:
            convert(around(layer), layout)
    if layer.weight is not None and kind != 'shared':  # which is no convolution for torch
        assert layer.weight.is_contiguous(
            memory_format=torch.channels_last_3d if kind == 'conv3d' else torch.channels_last)
    assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:`torch.nn.utils.weight_norm` is deprecated')
@pytest.mark.parametrize('compute', [
    lambda layer, name: nn.utils.parametrize.register_parametrization(layer, name, nn.Tanh()),
    parametrizations.weight_norm, weight_norm, lambda layer, name: spectral_norm(layer.eval(), name),
    lambda layer, name: torch_prune.l1_unstructured(layer, name, 0.5),
], ids=['tanh', 'weight_norm', 'older_weight_norm', 'older_spectral_norm', 'pruning'])
def test_channels_last_of_computed_coefficients(compute):
    layer, x = KANConv2d(3, 4, 3), torch.rand(2, 3, 6, 6)
    compute(layer, 'basis_weight')
    expected = layer(x)
    assert_close(layer.to(memory_format=torch.channels_last)(x), expected)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('memory', ['fast', 'low'])
@pytest.mark.parametrize('kind', [kind for kind in LAYERS if kind != 'shared'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_computed_coefficients_are_computed_once_a_pass(kind, memory, dtype):
    """As an ordinary layer's weight: a spectral norm takes a step each time, and an orthogonal one long."""
    class Counted(nn.Module):
        times = 0

        def forward(self, weight):
            self.times += 1
            return 2 * weight

    (make, shape), counted = LAYERS[kind], Counted()
    layer, x = make(memory=memory).to(dtype), torch.rand(shape, dtype=dtype)
    nn.utils.parametrize.register_parametrization(layer, 'basis_weight', counted)
    for enabled in (True, False):
        counted.times = 0
        with torch.set_grad_enabled(enabled):
            layer(x)
        assert counted.times == 1


def test_a_kan_neck_in_channels_last():
    neck = MMENGINE_MODELS.build(dict(type='mmdet.FPN', in_channels=[4, 8], out_channels=6, num_outs=3,
                                      conv_cfg=dict(type='rkan_mm.KANConv2d')))
    x = [torch.rand(2, 4, 16, 16), torch.rand(2, 8, 8, 8)]
    expected = neck(x)
    outs = neck.to(memory_format=torch.channels_last)([t.contiguous(memory_format=torch.channels_last) for t in x])
    for out, right in zip(outs, expected, strict=True):
        assert_close(out, right, rtol=1e-4, atol=1e-5)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_mask_moves_with_the_layer():
    for make, _ in LAYERS.values():
        layer = make()
        layer.prune(0.5)
        assert layer.double().mask.dtype == torch.float64
        assert layer.to('meta').mask.is_meta


@pytest.mark.parametrize('which', ['linear1', 'linear2'])
@pytest.mark.parametrize('put', [setattr, lambda encoder, *child: encoder.add_module(*child)], ids=['set', 'added'])
@pytest.mark.parametrize('copied', [False, True])
def test_a_transformer_calls_the_layers_in_it(which, put, copied):
    """Without gradients it would compute of their weight, the base branch."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    put(encoder, which, KANLinear(*(8, 16) if which == 'linear1' else (16, 8)))
    stack, x = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False) if copied else encoder, torch.rand(2, 3, 8)
    expected = stack(x)
    with torch.no_grad():
        assert_close(stack.eval()(x), expected)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    assert plain.activation_relu_or_gelu == 1
    torch.jit.script(plain)
