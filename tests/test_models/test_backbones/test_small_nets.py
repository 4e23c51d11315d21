"""The nets of Convolutional KANs and FasterKAN: parameters row by row, initial values, gradients."""

import pytest
import torch
from config_files import PATHS
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANLinear
from rkan_mm.models.backbones import ConvNet, EnhancedFeatureExtractor

# arXiv 2406.13155, the counts that its evaluation prints
CKAN = {
    'cnn-small_1xb32-20e': 1540, 'cnn-medium_1xb32-20e': 3020, 'cnn-medium-more-convs_1xb128-20e': 6930,
    'cnn-big_1xb128-20e': 26620, 'conv-kan-small-g10_1xb32-11e': 19030, 'conv-kan-small-g20_1xb32-14e': 31530,
    'conv-kan-medium-g10_1xb128-13e': 38010, 'conv-kan-medium-g20_1xb32-6e': 63010,
    'kanc-mlp-small-g10_1xb128-19e': 5310, 'kanc-mlp-small-g20_1xb128-20e': 8010,
    'kanc-mlp-medium-g10_1xb128-19e': 9935, 'kanc-mlp-medium-g20_1xb128-17e': 14885,
    'kanc-mlp-big-g10_1xb128-20e': 33535, 'kanc-mlp-big-g20_1xb128-12e': 38485, 'kkan-small-g10_1xb128-12e': 22800,
    'kkan-small-g20_1xb32-14e': 38000, 'kkan-medium-g10_1xb32-5e': 44925, 'kkan-medium-g20_1xb128-10e': 74875,
}
# rows with parameters of the report's tables: output channels, side of the map, parameters
STEM = [(32, 28, 320), (32, 28, 64)]
ATTENTION = [(32, 2, 8224), (32, 2, 8224), (256, 2, 65792)]
FASTER_KAN = [
    *STEM, (64, 14, 2048), (64, 14, 128), (64, 14, 18432), (64, 14, 128), (64, 14, 36864), (64, 14, 128), (4, 1, 256),
    (64, 1, 256), (64, 5, 640), (128, 5, 8320), (256, 5, 32768), (256, 5, 512), (256, 5, 294912), (256, 5, 512),
    (256, 5, 589824), (256, 5, 512), (16, 1, 4096), (256, 1, 4096), *ATTENTION,
]
KAN_HEAD = [(256, 0, 512), (128, 0, 262144), (128, 0, 256), (64, 0, 65536), (64, 0, 128), (32, 0, 16384), (32, 0, 64),
            (16, 0, 4096), (16, 0, 32), (10, 0, 1280)]
MLP = [
    *STEM, (64, 14, 18496), (64, 14, 128), *[(64, 14, 36928), (64, 14, 128)] * 4, (4, 1, 256), (64, 1, 256),
    (128, 7, 73856), (128, 7, 1280), (128, 7, 16512), (256, 7, 295168), (256, 7, 512),
    *[(256, 7, 590080), (256, 7, 512)] * 4, (16, 1, 4096), (256, 1, 4096), (256, 2, 262400), *ATTENTION, (10, 0, 2570),
]


def build(name):
    cfg = Config.fromfile(PATHS[name])
    init_default_scope('mmpretrain')
    return MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))


@pytest.mark.parametrize('name', CKAN)
def test_convolutional_kans_have_the_published_parameters(name):
    model = build(f'{name}_fmnist')
    assert sum(p.numel() for p in model.parameters()) == CKAN[name]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    kan_convs = [m for m in model.modules() if isinstance(m, KANConv2d)]
    assert len(kan_convs) == (2 if name.startswith('k') else 0)
    assert any(isinstance(m, nn.ReLU) for m in model.backbone.modules()) == (not kan_convs)


def test_convolutional_kans_begin_as_the_reference():
    model = build('kkan-medium-g10_1xb32-5e_fmnist')
    model.init_weights()
    first, second = (m for m in model.modules() if isinstance(m, KANConv2d))
    for layer, bound, noise in ((first, 1 / 3, 0.1), (second, 1 / 3, 0.1), (model.head.fc, 250**-0.5, 0.01)):
        for weight in (layer.weight, layer.scaler):
            assert 0.9 * bound < weight.abs().max() <= bound
        assert float(layer.basis_weight.detach().std()) == pytest.approx(0.96 * noise / 20, rel=0.1)
        assert layer.bias is None
    assert first.basis.interior()[0, [0, -1]].tolist() == [-1, 1]
    assert model.head.fc.basis.interior()[0, [0, -1]].tolist() == [0, 1]


@pytest.mark.parametrize(('name', 'rows', 'hidden', 'total'), [
    ('faster-kan-fe_faster-kan_1xb64-8e_fmnist-12k', FASTER_KAN + KAN_HEAD, 1, 1_427_489),
    ('mlp-fe_linear_1xb64-8e_fmnist-12k', MLP, 1, 3_272_843),
    ('faster-kan-fe_linear_1xb64-8e_fmnist-12k', [*FASTER_KAN, MLP[-1]], 1, 1_079_627),
    ('mlp-fe_faster-kan_1xb64-8e_fmnist-12k', MLP[:-1] + KAN_HEAD, 1, 3_620_705),
])
def test_extractors_have_the_rows_of_the_report(name, rows, hidden, total):
    """``hidden`` is the gate of the attention, which no table of modules shows."""
    model = build(name).eval()
    seen = []

    def note(module, args, output):
        count = sum(p.numel() for p in module.parameters(recurse=False))
        if count and not isinstance(module, type(model.backbone.layers[-3])):
            seen.append((output.shape[1], output.shape[2] if output.dim() == 4 else 0, count))

    for module in model.modules():
        module.register_forward_hook(note)
    model(torch.rand(1, 1, 28, 28))
    assert seen == rows
    assert sum(p.numel() for p in model.parameters()) == sum(row[2] for row in rows) + hidden == total
    assert all(p.requires_grad for p in model.parameters())


def test_faster_kan_and_fast_kan_layers_begin_as_the_reference():
    common = dict(normalization=dict(type='LN'))
    layer = KANLinear(64, 32, bias=False, with_base=False, init='faster_kan', basis=dict(type='RSWAF'), **common)
    bound = (6 / (64 * 8 + 32))**0.5
    assert 0.98 * bound < layer.basis_weight.abs().max() <= bound
    layer = KANLinear(64, 32, init='fast_kan', basis=dict(type='GaussianRBF'), **common)
    assert float(layer.basis_weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 64 + 64 * 8 * 32 + 64 * 32 + 32
    with pytest.raises(ValueError, match="KANLinear: no init 'kan'; there are parent, efficient_kan, fast_kan"):
        KANLinear(2, 2, init='kan')


@pytest.mark.parametrize('arch', ['faster_kan', 'mlp'])
def test_extractor_begins_without_attention_and_learns_it(arch):
    net = EnhancedFeatureExtractor(arch).eval()
    x = torch.rand(2, 1, 28, 28)
    (out,) = net(x)
    assert out.shape == (2, 256)
    out.sum().backward()
    attention = net.layers[-3]
    assert attention.gamma.grad.abs() > 0
    assert not attention.value.weight.grad.any()
    with torch.no_grad():
        attention.gamma.fill_(1)
        assert not torch.equal(net(x)[0], out)
    with pytest.raises(ValueError, match="arch must be 'faster_kan' or 'mlp', got 'cnn'"):
        EnhancedFeatureExtractor('cnn')


@pytest.mark.parametrize('arch', ['faster_kan', 'mlp'])
def test_extractors_keep_norms_behind_activations(arch):
    net, x = EnhancedFeatureExtractor(arch), torch.rand(2, 1, 28, 28)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    expected = net.eval()(x)[0]
    fused = fuse_conv_bn(net)
    assert_close(fused(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == 1


def test_attention_equals_its_formula():
    net = EnhancedFeatureExtractor().layers[-3]
    x = torch.rand(2, 256, 2, 2)
    with torch.no_grad():
        net.gamma.fill_(0.5)
        q, k, v = (conv(x).flatten(2) for conv in (net.query, net.key, net.value))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)  # (B, queries, keys)
        torch.testing.assert_close(net(x), x + 0.5 * (v @ weights.transpose(1, 2)).reshape(x.shape))


def test_conv_net_takes_other_layers():
    net = ConvNet((4, 6, 8), in_channels=3, conv_cfg=dict(type='KANConv2d', basis=dict(type='Chebyshev')), act_cfg=None)
    assert net(torch.rand(2, 3, 30, 30))[0].shape == (2, 8 * 2 * 2)
