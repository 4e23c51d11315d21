"""Norms folded into KAN layers by other libraries, and symbolic traces through them."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.testing import assert_close

from rkan_mm.models import (
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANConvTranspose2d,
    KANLinear,
    RKANBlock,
    RKANet,
    SharedKANConv2d,
)
from rkan_mm.models.layers.locked import Fixed, lock

LAYERS = dict(
    splines=lambda: KANConv2d(4, 6, 3), bias_and_polynomials=lambda: KANConv2d(4, 6, 3, basis=dict(type='Chebyshev')),
    without_bias=lambda: KANConv2d(4, 6, 3, bias=False), groups=lambda: KANConv2d(4, 6, 3, groups=2, with_scaler=True),
    norm=lambda: KANConv2d(4, 6, 3, normalization=dict(type='BN')), low_memory=lambda: KANConv2d(4, 6, 1, memory='low'),
    one_weight=lambda: KANConv2d(4, 6, 1, groups=2), conv1d=lambda: KANConv1d(4, 6, 3),
    conv3d=lambda: KANConv3d(4, 6, 3), transposed=lambda: KANConvTranspose2d(4, 6, 3), linear=lambda: KANLinear(4, 6),
    without_base=lambda: KANConv2d(4, 6, 3, with_base=False),
    functions_alone=lambda: KANConv2d(4, 6, 3, with_base=False, bias=False, groups=2),
    transposed_without_base=lambda: KANConvTranspose2d(4, 6, 3, with_base=False, groups=2),
    linear_without_base=lambda: KANLinear(4, 6, with_base=False, bias=False),
)
SHAPES = {KANConv1d: (4, 4, 9), KANConv3d: (4, 4, 4, 4, 4), KANLinear: (9, 4)}
NORMS = {KANConv1d: nn.BatchNorm1d, KANConv3d: nn.BatchNorm3d, KANLinear: nn.BatchNorm1d}


def pair(name):
    """A layer and a norm with statistics, and an input."""
    layer = LAYERS[name]()
    nn.init.normal_(layer.basis_weight)
    norm = NORMS.get(type(layer), nn.BatchNorm2d)(6)
    x = torch.randn(SHAPES.get(type(layer), (4, 4, 9, 9)))
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm(layer(x))
    layer.eval()
    norm.eval()
    return layer, norm, x


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('gamma', ['any', 'zero', 'one'])
def test_torch_folds_a_norm(name, gamma):
    layer, norm, x = pair(name)
    if gamma != 'any':
        nn.init.constant_(norm.weight, 0.0 if gamma == 'zero' else 1.0)
    before = copy.deepcopy(layer.state_dict())
    fuse = fuse_linear_bn_eval if isinstance(layer, KANLinear) else fuse_conv_bn_eval
    fused = fuse(layer, norm, **(dict(transpose=True) if isinstance(layer, KANConvTranspose2d) else {}))
    assert_close(fused(x), norm(layer(x)), rtol=1e-4, atol=1e-4)
    assert all(value.equal(before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize('name', [name for name in LAYERS if name != 'norm'])
def test_a_norm_is_folded_into_formulas_too(name):
    layer, norm, x = pair(name)
    shape = layer.importance().shape
    lock(layer, {(*start, *(n - 1 for n in shape[2:])): Fixed('sin', (1.5, 2.0, 0.1, 0.7))
                 for start in ((1, 0), (shape[0] - 1, shape[1] - 1))})
    fuse = fuse_linear_bn_eval if isinstance(layer, KANLinear) else fuse_conv_bn_eval
    fused = fuse(layer, norm, **(dict(transpose=True) if isinstance(layer, KANConvTranspose2d) else {}))
    expected = norm(layer(x))
    assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    assert_close(torch.fx.symbolic_trace(nn.Sequential(layer, norm))(x), expected, rtol=1e-4, atol=1e-4)
    if isinstance(layer, KANConv2d):
        conv = ConvModule(4, 6, 3, conv_cfg=dict(type='KANConv2d'), norm_cfg=dict(type='BN'), act_cfg=None).eval()
        conv.conv, conv.bn = layer, norm
        conv.turn_on_efficient_conv_bn_eval()
        assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def module(**kwargs):
    conv = ConvModule(4, 6, 3, conv_cfg=dict(type='KANConv2d', **kwargs), norm_cfg=dict(type='BN'))
    nn.init.normal_(conv.conv.basis_weight)
    nn.init.normal_(conv.norm.weight)
    x = torch.randn(4, 4, 9, 9)
    conv(x)
    return conv.eval(), x


@pytest.mark.parametrize('kwargs', [dict(), dict(basis=dict(type='Legendre')), dict(with_scaler=True),
                                    dict(with_base=False), dict(with_base=False, basis=dict(type='Legendre'))], ids=str)
def test_mmcv_folds_a_norm(kwargs):
    conv, x = module(**kwargs)
    expected = conv(x)
    assert_close(fuse_conv_bn(conv)(x), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(conv.bn, nn.Identity)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('with_base', [True, False])
def test_efficient_conv_bn_eval_gives_the_same_values_and_gradients(training, with_base):
    conv, x = module(with_base=with_base)
    fast, other = copy.deepcopy(conv), copy.deepcopy(conv)
    graph = nn.Sequential(nn.Sequential(other.conv, other.norm, other.activate))
    fast.turn_on_efficient_conv_bn_eval()
    turn_on_efficient_conv_bn_eval(graph, '0')
    for each in (conv, fast, graph):
        each.train(training)
        each(x).square().sum().backward()
    for other in (fast, graph):
        assert_close(other(x), conv(x), rtol=1e-4, atol=1e-4)
        for p, q in zip(conv.parameters(), other.parameters(), strict=True):
            assert (p.grad is None and q.grad.abs().max() < 1e-2) or (
                (p.grad - q.grad).norm() <= 1e-4 * p.grad.norm() + 1e-3)


def test_what_cannot_be_told_is_an_error():
    layer, norm, _ = pair('splines')
    with torch.no_grad():
        layer.weight[2] = 0
    with pytest.raises(RuntimeError, match='KANConv2d: something was folded .* output 2 was scaled cannot be told'):
        fuse_conv_bn_eval(layer, norm)
    with pytest.raises(RuntimeError, match='no multiples of its own'):
        layer._conv_forward(torch.rand(1, 4, 5, 5), torch.rand_like(layer.weight), None)


def test_other_weights_are_other_weights():
    """Only a multiple of the weights together with a bias is a folded norm."""
    layer, _, x = pair('splines')
    coefficients = layer.basis_weight.detach().clone()
    layer.weight, layer.bias = nn.Parameter(torch.rand_like(layer.weight)), nn.Parameter(torch.rand(6))
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    layer(x)
    layer.bias = nn.Parameter(torch.rand(6))
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    layer.train()
    layer.bias = nn.Parameter(torch.rand(6))
    layer.load_state_dict({**layer.state_dict(), 'weight': 3 * layer.weight.detach()}, assign=True)
    assert layer.basis_weight.equal(coefficients)


def test_a_norm_without_numbers_of_its_own_and_layers_in_half_precision():
    for norm in (nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6)):
        layer = KANConv2d(4, 6, 3, with_base=False, bias=False)
        x = torch.randn(4, 4, 9, 9)
        norm(layer(x))
        expected = norm.eval()(layer.eval()(x))
        assert_close(fuse_conv_bn_eval(layer, norm)(x), expected, rtol=1e-4, atol=1e-4)
        fused = fuse_conv_bn_eval(layer.bfloat16(), norm)
        assert fused.bias.dtype == torch.bfloat16
        assert_close(fused(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)


def test_a_norm_is_folded_into_one_of_two_layers_with_the_same_coefficients():
    layer, norm, x = pair('splines')
    other = LAYERS['splines']()
    other.basis_weight = layer.basis_weight
    before, expected = other(x), norm(layer(x))
    fused = fuse_conv_bn(nn.Sequential(layer, norm))
    assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    assert other(x).equal(before)


def test_folded_layers_are_saved_and_assigned():
    layer, norm, x = pair('without_bias')
    fused = fuse_conv_bn_eval(layer, norm)
    other = LAYERS['splines']()
    other.load_state_dict(fused.state_dict(), assign=True)
    assert_close(other(x), fused(x))


TRACED = dict(
    **{name: lambda name=name: (LAYERS[name](), SHAPES.get(type(LAYERS[name]()), (4, 4, 9, 9))) for name in LAYERS},
    shared=lambda: (SharedKANConv2d(3), (2, 4, 9, 9)), block=lambda: (RKANBlock(4, 4, last=True), (2, 4, 9, 9)),
    block_with_cp=lambda: (RKANBlock(4, 4, shortcut=True, with_cp=True), (2, 4, 9, 9)),
    rkanet=lambda: (RKANet(dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)), (2, 3, 64, 64)),
)


@pytest.mark.parametrize('name', TRACED)
def test_a_symbolic_trace_has_a_node_for_each_layer(name):
    layer, shape = TRACED[name]()
    x = torch.randn(shape)
    net = nn.Sequential(layer)
    net.eval()
    graph = torch.fx.symbolic_trace(net)
    assert_close(graph(x), net(x))
    assert_close(graph(torch.cat([x, x]))[-1], net(torch.cat([x, x]))[-1])
    nodes = [type(net.get_submodule(node.target)) for node in graph.graph.nodes if node.op == 'call_module']
    kinds = (KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, KANLinear, SharedKANConv2d)
    assert sum(kind in kinds for kind in nodes) == sum(isinstance(each, kinds) for each in net.modules())


@pytest.mark.parametrize('layer', [KANLinear(4, 3), KANConvTranspose2d(4, 3, 3), SharedKANConv2d(3)], ids=str)
def test_a_layer_alone_has_no_symbolic_trace(layer):
    with pytest.raises(TraceError, match=f'{type(layer).__name__}: a layer is one node .* a model that holds it'):
        torch.fx.symbolic_trace(layer)
