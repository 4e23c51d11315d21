"""Attention layers alone; `test_parity` compares whole networks that have them with the reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_plugin_layer
from torch import nn
from torch.testing import assert_close

from rkan_mm.models.layers import CBAM, ECA, ELA, SE, GlobalContext, ShuffleAttention, SimAM

# type: (name of the plugin, parameters at 256 channels)
LAYERS = {
    'SE': ('se', 2 * 256 * 16),
    'ECA': ('eca', 5),
    'CBAM': ('cbam', 2 * 256 * 16 + 2 * 49),
    'ShuffleAttention': ('shuffle_attention', 6 * 2),
    'SimAM': ('simam', 0),
    'ELA': ('ela', 256 * 8 * 7 + 2 * 256),
    'GlobalContext': ('context_block', 256 + 2 * 256 * 64 + 2 * 64),
}


@pytest.mark.parametrize('kind', LAYERS)
def test_is_a_plugin_layer(kind):
    name, params = LAYERS[kind]
    built, layer = build_plugin_layer(dict(type=f'rkan_mm.{kind}'), postfix='_x', in_channels=256)
    assert built == f'{name}_x'
    assert sum(p.numel() for p in layer.parameters()) == params
    x = torch.rand(2, 256, 5, 7, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None for p in [x, *layer.parameters()])


@pytest.fixture
def x():
    return torch.randn(2, 32, 4, 3, dtype=torch.float64)


def test_se_by_hand(x):
    layer = SE(32, squeeze_channels=3, bias=True).double()
    w1, w2 = layer.squeeze.weight[:, :, 0, 0], layer.excite.weight[:, :, 0, 0]
    for image, out in zip(x, layer(x), strict=True):
        s = (w2 @ (w1 @ image.mean((1, 2)) + layer.squeeze.bias).clamp(min=0) + layer.excite.bias).sigmoid()
        assert_close(out, image * s[:, None, None])


@pytest.mark.parametrize(('channels', 'kernel'), [(64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)])
def test_eca_kernel(channels, kernel):
    assert ECA(channels).conv.kernel_size == (kernel,)


def test_eca_by_hand(x):
    layer = ECA(32).double()
    weight = layer.conv.weight[0, 0]
    means = F.pad(x.mean((2, 3)), (1, 1))
    for c in range(32):
        assert_close(layer(x)[:, c], x[:, c] * (means[:, c:c + 3] @ weight).sigmoid()[:, None, None])


def test_cbam_looks_at_mean_and_maximum(x):
    layer = CBAM(32).double()
    nn.init.zeros_(layer.spatial.weight)
    s = (layer.mlp(F.adaptive_avg_pool2d(x, 1)) + layer.mlp(F.adaptive_max_pool2d(x, 1))).sigmoid()
    assert_close(layer(x), x * s * 0.5)
    layer.spatial.weight.data[0, :, 3, 3] = torch.tensor([2.0, 3.0])
    y = x * s
    assert_close(layer(x), y * (2 * y.mean(1, keepdim=True) + 3 * y.max(1, keepdim=True)[0]).sigmoid())


def test_shuffle_attention_at_its_start_scales_and_shuffles(x):
    layer = ShuffleAttention(32, groups=4).double()
    order = [c for pair in zip(range(16), range(16, 32), strict=True) for c in pair]
    assert_close(layer(x), x[:, order] * torch.tensor(1.0).sigmoid())


def test_shuffle_attention_weighs_halves_of_a_group(x):
    layer = ShuffleAttention(32, groups=4).double()
    layer.channel_bias.data.fill_(100)
    layer.spatial_bias.data.fill_(-100)
    kept = layer(x).abs().sum((0, 2, 3)) > 1e-9  # the first 4 of each 8 channels, then shuffled
    order = [c for pair in zip(range(16), range(16, 32), strict=True) for c in pair]
    assert kept.tolist() == [c % 8 < 4 for c in order]


def test_simam_by_hand(x):
    mean = x.mean((2, 3), keepdim=True)
    variance = x.var((2, 3), keepdim=True)
    assert_close(SimAM(32)(x), x * ((x - mean)**2 / (4 * (variance + 1e-4)) + 0.5).sigmoid())
    assert SimAM(32)(x[:, :, :1, :1]).isfinite().all()


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('traced', [False, True])
def test_large_maps_in_half_precision(kind, traced):
    """As those of a detector's first stage: half precision cannot hold a sum over its pixels."""
    _, layer = build_plugin_layer(dict(type=f'rkan_mm.{kind}'), in_channels=128)
    x = torch.randn(1, 128, 1, 1) + torch.randn(1, 1, 250, 300)
    with torch.no_grad():
        expected = layer(x)
        half = (torch.jit.trace(layer, x, check_trace=False) if traced else layer).half()
        assert (half(x.half()) - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize(('size', 'kernel', 'groups', 'norm_groups'),
                         [('T', 5, 32, 32), ('B', 7, 32, 16), ('S', 5, 4, 16), ('L', 7, 4, 16)])
def test_ela_sizes(size, kernel, groups, norm_groups, x):
    layer = ELA(32, size).double()
    assert (layer.conv.kernel_size, layer.conv.groups, layer.norm.num_groups) == ((kernel,), groups, norm_groups)
    height, width = (layer.norm(layer.conv(x.mean(axis))).sigmoid() for axis in (3, 2))
    assert_close(layer(x)[0, 5, 2, 1], x[0, 5, 2, 1] * height[0, 5, 2] * width[0, 5, 1])


def test_global_context_is_mmcvs_without_biases(x):
    layer = GlobalContext(32, ratio=1 / 8).double()
    nn.init.normal_(layer.channel_add_conv[3].weight)
    assert [name for name, _ in layer.named_parameters() if name.endswith('bias')] == ['channel_add_conv.1.bias']
    attention = (x * layer.conv_mask.weight).sum(1).flatten(1).softmax(1)
    context = (x.flatten(2) * attention[:, None]).sum(2)[..., None, None]
    assert_close(layer(x), x + layer.channel_add_conv(context))
    assert math.isclose(GlobalContext(32, bias=True).conv_mask.bias.item(), 0)


@pytest.mark.parametrize(('build', 'message'), [
    (lambda: ShuffleAttention(64), 'ShuffleAttention: 64 groups need a multiple of 128 channels, got 64; give fewer'),
    (lambda: ELA(64, 'XL'), "ELA: no size 'XL'; there are T, B, S, L"),
    (lambda: ELA(24), "ELA: size 'L' needs a multiple of 16 channels, got 24"),
], ids=['groups', 'size', 'channels'])
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
