"""KAN convolutions and the KAN linear layer against their definition."""

import copy
import itertools
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, KANLinear
from rkan_mm.registry import BASES

CONVS = {1: KANConv1d, 2: KANConv2d, 3: KANConv3d}
every_basis = pytest.mark.parametrize('basis', sorted(BASES.module_dict))


def randomise(layer: nn.Module) -> nn.Module:
    """Every parameter at random, and a grid for each channel that differs."""
    layer = layer.double()
    for name, parameter in layer.named_parameters():
        if not name.startswith('basis.'):
            nn.init.normal_(parameter)
    grid = getattr(layer.basis, 'grid', None)
    if grid is not None:
        grid.data *= 1 + 0.3 * torch.rand(len(grid), 1)
    return layer


def functions(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Basis functions of (B, C, ...) behind the channels."""
    return layer.basis(x.tanh() if layer.normalization == 'tanh' else x, 1)


def taps(layer: nn.Module, x: torch.Tensor):
    """For each tap of the kernel, the part of the padded input that it sees: (B, C, *out)."""
    n = layer.spatial
    if layer.padding == 'same':
        sides = [((k - 1) * d // 2, (k - 1) * d - (k - 1) * d // 2)
                 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    else:
        padding = (0,) * n if layer.padding == 'valid' else layer.padding
        sides = [(p, p) for p in padding]
    mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
    x = F.pad(x, [p for side in reversed(sides) for p in side], mode=mode)
    out = [(x.shape[2 + i] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1) // layer.stride[i] + 1
           for i in range(n)]
    for tap in itertools.product(*map(range, layer.kernel_size)):
        starts = [t * d for t, d in zip(tap, layer.dilation, strict=True)]
        yield tap, x[(..., *[slice(a, a + s * (o - 1) + 1, s)
                             for a, s, o in zip(starts, layer.stride, out, strict=True)])]


def conv_oracle(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    total = 0
    for tap, seen in taps(layer, x):
        values, base = functions(layer, seen), F.silu(seen)
        parts = []
        for group in range(layer.groups):
            inputs = slice(group * layer.in_channels // layer.groups, (group + 1) * layer.in_channels // layer.groups)
            outputs = slice(group * layer.out_channels // layer.groups,
                            (group + 1) * layer.out_channels // layer.groups)
            weight = layer.basis_weight[(outputs, slice(None), slice(None), *tap)]  # (out, in, F)
            if layer.scaler is not None:
                weight = weight * layer.scaler[(outputs, slice(None), *tap)].unsqueeze(2)
            part = torch.einsum('oif,bif...->bo...', weight, values[:, inputs])
            if layer.weight is not None:
                part = part + torch.einsum('oi,bi...->bo...', layer.weight[(outputs, slice(None), *tap)],
                                           base[:, inputs])
            parts.append(part)
        total = total + torch.cat(parts, 1)
    return total if layer.bias is None else total + layer.bias.reshape(-1, *[1] * layer.spatial)


@every_basis
@pytest.mark.parametrize('with_base', [True, False])
@pytest.mark.parametrize('stride', [1, 2])
def test_conv_is_its_definition_for_every_basis(basis, with_base, stride):
    layer = randomise(KANConv2d(4, 6, 3, stride, padding=1, groups=2, basis=dict(type=basis), with_base=with_base,
                                with_scaler=stride == 2))
    x = 1.5 * torch.randn(2, 4, 6, 5, dtype=torch.float64)
    assert_close(layer(x), conv_oracle(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('spatial', [1, 2, 3])
@pytest.mark.parametrize('args', [
    dict(kernel_size=3), dict(kernel_size=2, stride=2, padding=1, bias=False),
    dict(kernel_size=3, dilation=2, padding=2), dict(kernel_size=3, padding='same', dilation=2),
    dict(kernel_size=2, padding='same'), dict(kernel_size=3, padding='valid'),
    dict(kernel_size=3, padding=1, padding_mode='reflect', groups=4),
    dict(kernel_size=3, padding='same', padding_mode='circular'),
    dict(kernel_size=2, padding=1, padding_mode='replicate', stride=2),
], ids=str)
@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev'])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_whole_signature(spatial, args, basis):
    layer = randomise(CONVS[spatial](4, 4, basis=dict(type=basis), **args))
    x = torch.randn(2, 4, *(7, 5, 6)[:spatial], dtype=torch.float64)
    expected = conv_oracle(layer, x)
    assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    assert layer(x).shape == getattr(nn, f'Conv{spatial}d')(4, 4, **args)(x.float()).shape
    assert_close(layer(x[0]), expected[0], rtol=1e-10, atol=1e-10)


def test_rectangular_kernel():
    layer = randomise(KANConv2d(3, 2, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)))
    x = torch.randn(2, 3, 5, 9, dtype=torch.float64)
    assert_close(layer(x), conv_oracle(layer, x), rtol=1e-10, atol=1e-10)


@every_basis
def test_linear_is_its_definition(basis):
    layer = randomise(KANLinear(5, 3, basis=dict(type=basis), with_scaler=True))
    x = torch.randn(4, 5, dtype=torch.float64)
    weight = layer.basis_weight * layer.scaler[..., None]
    expected = torch.einsum('oif,bif->bo', weight, functions(layer, x)) + F.silu(x) @ layer.weight.T + layer.bias
    assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    assert_close(layer(x.view(2, 2, 5)).view(4, 3), expected, rtol=1e-10, atol=1e-10)
    assert_close(layer(x[0]), expected[0], rtol=1e-10, atol=1e-10)


@every_basis
@pytest.mark.parametrize('args', [dict(kernel_size=2, stride=2), dict(kernel_size=3, padding=1, groups=2, bias=False),
                                  dict(kernel_size=3, stride=2, padding=1, output_padding=1, dilation=2)], ids=str)
def test_transposed_is_its_definition(basis, args):
    layer = randomise(KANConvTranspose2d(4, 6, basis=dict(type=basis), **args))
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64)
    values = functions(layer, x)
    plain = nn.ConvTranspose2d(4, 6, **args).double()
    options = (None, plain.stride, plain.padding, plain.output_padding, plain.groups, plain.dilation)
    expected = F.conv_transpose2d(F.silu(x), layer.weight, *options)
    for f in range(values.shape[2]):
        expected = expected + F.conv_transpose2d(values[:, :, f], layer.basis_weight[:, :, f], *options)
    if layer.bias is not None:
        expected = expected + layer.bias[:, None, None]
    assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    assert_close(layer(x[0]), expected[0], rtol=1e-10, atol=1e-10)


def test_output_size_of_the_transposed():
    layer = KANConvTranspose2d(2, 2, 3, stride=2, padding=1)
    x = torch.rand(1, 2, 4, 4)
    y = layer(x, output_size=[8, 8])
    assert y.shape == (1, 2, 8, 8)
    for size in ([8, 8], y[0].shape):  # without a batch, of height and width or of all
        assert_close(layer(x[0], output_size=size), y[0])
    with pytest.raises(ValueError, match='for 3D input, output_size must have 2 or 3 elements'):
        layer(x[0], output_size=y.shape)


LAYERS = {
    'conv1d': (lambda **a: KANConv1d(3, 4, 3, padding=1, **a), (2, 3, 5)),
    'conv2d': (lambda **a: KANConv2d(3, 4, 3, padding=1, **a), (2, 3, 4, 3)),
    'conv3d': (lambda **a: KANConv3d(3, 2, 2, **a), (2, 3, 3, 2, 3)),
    'transposed': (lambda **a: KANConvTranspose2d(3, 2, 2, 2, **a), (2, 3, 2, 3)),
    'linear': (lambda **a: KANLinear(3, 4, **a), (2, 3)),
}
layers = pytest.mark.parametrize('kind', LAYERS)


@layers
@pytest.mark.parametrize('basis', ['BSpline', 'Legendre', 'Rational', 'RSWAF'])
@pytest.mark.parametrize('memory', ['fast', 'low'])
def test_gradcheck(kind, basis, memory):
    make, shape = LAYERS[kind]
    options = dict(trainable_grid=True, trainable_width=True) if basis == 'RSWAF' else {}
    layer = randomise(make(basis=dict(type=basis, **options), with_scaler=True, memory=memory))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())

    def function(x, *_):  # gradcheck moves the parameters in place
        return layer(x)

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)


@layers
@every_basis
def test_batch(kind, basis):
    """Each sample alone gives the same; batches of one and of none work."""
    make, shape = LAYERS[kind]
    layer = randomise(make(basis=dict(type=basis))).eval()
    x = torch.randn(shape, dtype=torch.float64)
    out = layer(x)
    assert_close(torch.cat([layer(part) for part in x.split(1)]), out)
    empty = x[:0].requires_grad_()
    assert layer(empty).shape == (0, *out.shape[1:])
    layer(empty).sum().backward()


@every_basis
def test_groups_do_not_mix(basis):
    layer = randomise(KANConv2d(4, 4, 3, padding=1, groups=2, basis=dict(type=basis)))
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    moved = x.clone()
    moved[:, 2:] += 1
    before, after = layer(x), layer(moved)
    assert_close(before[:, :2], after[:, :2], rtol=0, atol=0)
    assert not before[:, 2:].allclose(after[:, 2:])


@layers
@every_basis
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_is_finite_and_close(kind, basis, dtype):
    make, shape = LAYERS[kind]
    layer, x = make(basis=dict(type=basis)), 3 * torch.randn(shape)
    exact = layer(x)
    with torch.autocast('cpu', dtype):
        for out in (layer(x), layer(x.to(dtype))):
            assert out.dtype == dtype
            assert (out.float() - exact).norm() / exact.norm() < (3e-2 if dtype is torch.bfloat16 else 5e-3)
            out.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@layers
def test_low_memory_gives_the_same(kind):
    make, shape = LAYERS[kind]
    fast = make(memory='fast')
    low = copy.deepcopy(fast)
    low.memory = 'low'
    x = torch.randn(shape)
    results = []
    for layer in (fast, low):
        own = x.clone().requires_grad_()
        out = layer(own)
        out.square().sum().backward()
        results.append([out, own.grad, *[parameter.grad for parameter in layer.parameters()]])
    assert_close(results[0], results[1])


@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev', 'GaussianRBF', 'Fourier'])
@pytest.mark.parametrize('kind', ['conv2d', 'linear'])
def test_low_memory_saves_the_input_alone(kind, basis):
    layer, x = {'conv2d': (KANConv2d(8, 8, 3, padding=1, basis=dict(type=basis), memory='low'),
                           torch.randn(4, 8, 32, 32)),
                'linear': (KANLinear(64, 8, basis=dict(type=basis), memory='low'), torch.randn(512, 64))}[kind]
    x.requires_grad_()
    saved = {}
    own = {parameter.data_ptr() for parameter in layer.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum().backward()
    assert sum(saved.values()) <= 1.1 * x.nbytes


@layers
def test_copies(kind):
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(copied(x), layer(x))
        copied.basis_weight.data += 1
        assert not copied(x).allclose(layer(x))


def test_device_and_dtype():
    layer = KANConv2d(2, 3, 3, basis=dict(type='GaussianRBF'), device='meta', dtype=torch.bfloat16)
    assert all(t.is_meta and t.dtype == torch.bfloat16 for t in (*layer.parameters(), *layer.buffers()))
    assert KANLinear(2, 3, dtype=torch.float64)(torch.rand(1, 2, dtype=torch.float64)).dtype == torch.float64


@every_basis
@layers
def test_without_values(kind, basis):
    """On the meta device, as large models are built."""
    layer = LAYERS[kind][0](basis=dict(type=basis), device='meta')
    assert all(value.is_meta for value in (*layer.parameters(), *layer.buffers()))
    assert basis in repr(layer)
    assert layer(torch.empty(LAYERS[kind][1], device='meta')).is_meta


@every_basis
def test_built_in_double_precision_and_run_in_single(basis):
    torch.set_default_dtype(torch.float64)  # the `_isolated` fixture resets it
    exact = KANConv2d(2, 3, 3, padding=1, basis=dict(type=basis))
    x = torch.randn(1, 2, 5, 5)
    assert_close(copy.deepcopy(exact).float()(x.float()).double(), exact(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev'])
@pytest.mark.parametrize('norm', [dict(type='IN', affine=True), dict(type='GN', num_groups=1), dict(type='BN')])
def test_norm_before_the_basis(basis, norm):
    layer = KANConv2d(4, 4, 3, padding=1, basis=dict(type=basis), normalization=norm)
    x = torch.randn(2, 4, 6, 6)
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert 'norm.weight' in layer.state_dict()
    scaled = layer.train()(x)
    layer.weight.data.zero_()  # what is left sees the normalised input only
    assert not scaled.allclose(layer(x))
    assert_close(layer(x), layer(100 * x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('memory', ['fast', 'low'])
@pytest.mark.parametrize('kind', ['conv2d', 'transposed', 'linear'])
def test_statistics_of_the_norm_count_once(kind, memory):
    make, shape = LAYERS[kind]
    layer = make(normalization=dict(type='BN1d' if kind == 'linear' else 'BN'), memory=memory).train()
    layer(torch.randn(shape)).sum().backward()
    assert layer.norm.num_batches_tracked == 1
    layer.importance(torch.randn(shape))
    assert layer.norm.num_batches_tracked == 1


def test_the_input_stays_as_it_is():
    layer = KANConv2d(2, 2, 1, base_act_cfg=dict(type='SiLU', inplace=True), basis=dict(type='Fourier'))
    x = torch.randn(1, 2, 3, 3)
    before = x.clone()
    layer(x)
    assert_close(x, before, rtol=0, atol=0)


@layers
@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev', 'GaussianRBF'])
def test_second_derivatives(kind, basis):
    """In single precision, where compiled kernels are at work, as in double precision."""
    make, shape = LAYERS[kind]
    layer, x = make(basis=dict(type=basis)), torch.randn(shape)
    results = []
    for model in (layer, copy.deepcopy(layer).double()):
        own = x.to(model.basis_weight).requires_grad_()
        (first,) = torch.autograd.grad(model(own).square().sum(), own, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), own)
        results.append(second.double())
    assert_close(*results, rtol=1e-3, atol=1e-3 * results[1].abs().max().item())


def test_layer_norm_before_the_basis():
    layer = KANLinear(8, 4, basis=dict(type='GaussianRBF'), normalization=dict(type='LN'), with_base=False)
    x = torch.randn(5, 8)
    assert_close(layer(x), layer(7 * x), rtol=1e-3, atol=1e-3)
    # FastKAN's [784, 64] layer without its base branch: 2 in + 8 in out
    layer = KANLinear(784, 64, bias=False, basis=dict(type='GaussianRBF'), normalization=dict(type='LN'),
                      with_base=False)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 784 + 8 * 784 * 64


def test_builds_as_conv_cfg():
    cfg = dict(type='KANConv2d', basis=dict(type='Legendre', degree=2))
    conv = build_conv_layer(cfg, 4, 8, kernel_size=3, stride=2, padding=1, bias=False)
    assert type(conv) is KANConv2d
    assert conv.bias is None
    module = ConvModule(4, 8, 3, stride=2, padding=1, conv_cfg=cfg, norm_cfg=dict(type='BN'))
    assert module(torch.rand(2, 4, 9, 9)).shape == (2, 8, 5, 5)
    before = module.conv.basis_weight.clone()
    module.init_weights()  # leaves it to the convolution, which draws its own
    assert before.equal(module.conv.basis_weight)
    module.conv.init_weights()
    assert not before.equal(module.conv.basis_weight)
    linear = MMENGINE_MODELS.build(dict(type='KANLinear', in_features=3, out_features=4))
    assert type(linear) is KANLinear


def test_plain_checkpoint_goes_to_the_base_branch():
    plain = nn.Conv2d(3, 4, 3)
    layer = KANConv2d(3, 4, 3)
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert missing == ['basis_weight', 'basis.grid']
    assert_close(layer.weight, plain.weight)


def test_parameters_are_counted():
    """(G + k + 1 base + 1 scaler) for each function: 5 -> 10, 3x3, G = 10 of arXiv 2406.13155 has 50 * 9 * 15."""
    layer = KANConv2d(5, 10, 3, bias=False, basis=dict(type='BSpline', grid_size=10), with_scaler=True)
    assert sum(p.numel() for p in layer.parameters()) == 50 * 9 * 15
    layer = KANConv2d(5, 10, 3, basis=dict(type='Chebyshev', degree=3), with_base=False)
    assert sum(p.numel() for p in layer.parameters()) == 50 * 9 * 4 + 10


@pytest.mark.parametrize(('args', 'message'), [
    (dict(memory='none'), "KANConv2d: memory must be 'fast' or 'low', got 'none'"),
    (dict(normalization='l2'), "KANConv2d: no normalization 'l2'; there are tanh, none, or the config of a norm layer"),
    (dict(basis=dict(type='Spline')), "KANConv2d: no basis 'Spline'; there are BSpline"),
    (dict(base_act_cfg=dict(type='Sigmoid')), 'KANConv2d: base_act_cfg must be a function with a(0) = 0'),
], ids=str)
def test_wrong_arguments(args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        KANConv2d(2, 2, 3, **args)


@pytest.mark.parametrize('kind', ['conv', 'transposed'])
def test_an_activation_with_a_parameter_for_each_channel(kind):
    cls, convolve = dict(conv=(KANConv2d, F.conv2d), transposed=(KANConvTranspose2d, F.conv_transpose2d))[kind]
    layer, x = cls(4, 4, 3, padding=1, base_act_cfg=dict(type='PReLU', num_parameters=4)), torch.randn(2, 4, 5, 6)
    nn.init.uniform_(layer.base_act.weight)
    whole, base = layer(x), convolve(F.prelu(x, layer.base_act.weight), layer.weight, padding=1)
    assert layer.importance(x).isfinite().all()
    nn.init.zeros_(layer.weight)
    assert_close(whole, base + layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('make', 'norm', 'better'), [
    (lambda **args: KANConv1d(4, 2, 3, **args), 'IN', "dict(type='IN1d')"),
    (lambda **args: KANConv2d(4, 2, 3, **args), 'IN3d', "dict(type='IN2d')"),
    (lambda **args: KANConv2d(4, 2, 3, **args), 'LN', "dict(type='GN', num_groups=1)"),
    (lambda **args: KANLinear(4, 2, **args), 'IN', "dict(type='LN')"),
    (lambda **args: KANLinear(4, 2, **args), 'IN1d', "dict(type='LN')")])
def test_norms_that_take_another_dimension_for_channels(make, norm, better):
    """Torch takes (B, C, L) for a picture without a batch, and only warns."""
    with pytest.raises(ValueError, match=re.escape(better)):
        make(normalization=dict(type=norm))
