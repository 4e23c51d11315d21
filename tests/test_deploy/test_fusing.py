"""Models made lean: the same results, what was done, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.testing import assert_close

import rkan_mm
from rkan_mm.deploy.fusing import Fused
from rkan_mm.models import KANConv2d, KANConvTranspose2d, KANLinear, RKANBlock, RKANet
from rkan_mm.models.layers.locked import Fixed, lock

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
NARROW = dict(type='mmpretrain.ResNet', depth=18, base_channels=4, stem_channels=4)


def trained(net: nn.Module) -> nn.Module:
    """With weights that training could leave."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        for name in ('scaler', 'mask'):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.uniform_(getattr(module, name), 0.5, 1.5)
    return net.eval()


def kan_net(**kwargs) -> nn.Module:
    return nn.Sequential(
        KANConv2d(3, 6, 3, padding=1, **kwargs), nn.BatchNorm2d(6), nn.MaxPool2d(2), KANConv2d(6, 4, 3, **kwargs),
        nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), KANLinear(5 * 9, 4, **kwargs), KANLinear(4, 2))


def pruned(net: nn.Module) -> nn.Module:
    """Channel 2 of the first layer is read by none, nor are channel 1 of the third and output 3 of the fourth."""
    for layer, inputs in ((net[3], [2]), (net[8], range(9, 18)), (net[9], [3])):
        layer.prune(threshold=-1.0)
        layer.mask[:, list(inputs)] = 0
    return net


NETS = dict(
    splines=kan_net, scalers=lambda: kan_net(with_scaler=True),
    polynomials=lambda: kan_net(basis=dict(type='Chebyshev'), with_scaler=True),
    functions=lambda: kan_net(with_base=False),
    windows=lambda: kan_net(basis=dict(type='GaussianRBF', per_channel=True)), without_bias=lambda: kan_net(bias=False),
    pruned=lambda: pruned(kan_net(with_scaler=True)),
    pruned_polynomials=lambda: pruned(kan_net(basis=dict(type='Legendre'))),
    norms=lambda: kan_net(normalization=dict(type='GN', num_groups=1)),
    block=lambda: RKANBlock(3, 8, 2, reduction=1),
    last_block=lambda: RKANBlock(3, 8, last=True, reduction=1, shortcut=True),
    without_activation=lambda: RKANBlock(3, 8, last=True, reduction=1, act_cfg=None, norm_before=True),
    splines_in_block=lambda: RKANBlock(3, 8, last=True, reduction=1, basis=dict(type='BSpline')),
    before_1x1=lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, 2), nn.BatchNorm2d(4)),
    transposed=lambda: nn.Sequential(KANConvTranspose2d(3, 4, 2, with_scaler=True), nn.BatchNorm2d(4)),
    resnet=lambda: RKANet(copy.deepcopy(NARROW), ('layer3', 'layer4')),
    densenet=lambda: RKANet(dict(type='mmpretrain.DenseNet', arch=dict(growth_rate=4, depths=[1, 2], init_channels=8),
                                 out_indices=(1,)), ('stages.1:transitions.1',)),
)
FEWER = dict(splines=2, pruned=2, block=1, last_block=2, before_1x1=2, resnet=22, without_activation=3)
"""Norms that are gone, at least."""


def flat(out):
    return torch.cat([each.flatten(1) for each in (out if isinstance(out, tuple | list) else [out])], 1)


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('name', NETS)
def test_computes_the_same(name, dtype, tmp_path):
    net = trained(NETS[name]()).to(dtype)
    size = 64 if name in ('resnet', 'densenet') else 10
    x = torch.randn(2, 3, size, size, dtype=dtype)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    keys = {key for key in net.state_dict() if key.endswith(('scaler', 'mask'))}
    with torch.no_grad():
        expected, report = flat(net(x)), Fused()
        fused = rkan_mm.fuse(net, report)
        out = flat(fused(x))
    assert (out - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    assert norms - sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) >= FEWER.get(name, 0)
    assert not {key for key in fused.state_dict() if key.endswith(('scaler', 'mask'))}
    assert not keys or any('merged' in line for line in report)
    torch.save(fused, tmp_path / 'fused.pth')
    loaded = torch.load(tmp_path / 'fused.pth', weights_only=False)
    with torch.no_grad():
        assert flat(loaded(x)).equal(out)
        assert flat(rkan_mm.fuse(loaded)(x)).sub(out).norm() <= TOLERANCE[dtype] * expected.norm()
    if 'pruned' not in name:
        again = rkan_mm.fuse(trained(NETS[name]()).to(dtype))
        for parameter in again.parameters():
            parameter.data.zero_()
        again.load_state_dict(fused.state_dict())
        with torch.no_grad():
            assert flat(again(x)).equal(out)


@pytest.mark.parametrize(('make', 'name'), [
    (lambda: KANConv2d(3, 3, 3), 'basis_weight'), (lambda: KANConv2d(3, 3, 3, with_scaler=True), 'scaler'),
    (lambda: nn.Conv2d(3, 3, 3), 'weight')])
def test_layers_whose_weights_are_computed_from_others(make, name):
    net, report, x = nn.Sequential(make(), nn.BatchNorm2d(3)), Fused(), torch.rand(2, 3, 5, 5)
    nn.utils.parametrize.register_parametrization(net[0], name, nn.Tanh())
    expected = trained(net)(x)
    assert_close(rkan_mm.fuse(net, report)(x), expected)
    if name != 'weight':
        assert report == ['0: left alone, its weights are computed from others']


@pytest.mark.filterwarnings('ignore:`torch.nn.utils.weight_norm` is deprecated')
def test_a_weight_norm_of_the_older_kind():
    layer, report, x = KANLinear(4, 4, basis=dict(type='Chebyshev')), Fused(), torch.rand(5, 4)
    net = nn.Sequential(nn.utils.weight_norm(layer, 'basis_weight'))
    expected = net.eval()(x)
    assert_close(rkan_mm.fuse(net, report)(x), expected)
    assert report == ['0: left alone, its weights are computed from others']


def test_layers_with_tied_coefficients():
    net = nn.Sequential(*(KANLinear(4, 4, basis=dict(type='Chebyshev')) for _ in range(2))).eval()
    net[1].basis_weight = net[0].basis_weight
    x = torch.rand(5, 4)
    expected = net(x)
    assert_close(rkan_mm.fuse(net)(x), expected)


def test_channels_that_nothing_reads():
    net, report = trained(NETS['pruned']()), Fused()
    parameters = sum(p.numel() for p in net.parameters())
    rkan_mm.fuse(net, report)
    assert [net[i].weight.shape[:2] for i in (0, 3, 6, 8, 9)] == [(5, 3), (4, 5), (4, 4), (3, 36), (2, 3)]
    assert net[3].basis.grid.shape[0] == 5
    assert '0: channels dropped: 1 of 6, which nothing reads' in report
    assert 'channels dropped' in str(report)
    assert sum(p.numel() for p in net.parameters()) < 0.85 * parameters


def test_channels_of_a_block():
    block, report = trained(RKANBlock(4, 8, reduction=1, norm_before=True)), Fused()
    block.expand.weight.data[:, 1:3] = 0
    x = torch.randn(2, 4, 9, 9)
    expected = block(x)
    assert torch.allclose(rkan_mm.fuse(block, report)(x), expected, rtol=1e-5, atol=1e-5)
    assert (block.reduce.out_channels, block.expand.in_channels, block.norm_before1.num_features) == (2, 2, 2)
    assert any('constant moved into norm1' in line for line in report)


def test_what_is_left_alone(caplog):
    """A norm with a hook, one whose input others see, a layer at two places, one with formulas."""
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hooked, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.seen, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.twice, self.bn3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.padded_behind = nn.Conv2d(3, 3, 1, padding=1)

        def forward(self, x):
            y = self.seen(self.bn1(self.hooked(x)))
            return self.padded_behind(self.bn3(self.twice(self.twice(y + self.bn2(y)))))
    net = trained(Net())
    net.hooked.register_forward_hook(lambda module, args, out: out.relu())
    x = torch.randn(2, 3, 5, 5)
    expected, report = net(x), Fused()
    assert torch.allclose(rkan_mm.fuse(net, report)(x), expected, rtol=1e-4, atol=1e-5)
    assert report == ['bn1: norm folded into seen, behind it']
    locked = trained(KANConv2d(2, 2, 3, with_scaler=True))
    lock(locked, {(0, 0, 1, 1): Fixed('sin', (1.5, 2.0, 0.1, 0.7))})
    expected = locked(x[:, :2])
    assert rkan_mm.fuse(locked, report)(x[:, :2]).equal(expected)
    assert 'left alone, it has formulas' in report[-1]
    with pytest.raises(ValueError, match=r'fuse: 1 is in training mode: call model.eval\(\) before'):
        rkan_mm.fuse(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


def test_parts_of_a_model_that_cannot_be_traced():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = ConvModule(3, 4, 3, norm_cfg=dict(type='BN'))

        def forward(self, x):
            return self.part(x) if x.sum() > 0 else x
    net, x = trained(Branches()), torch.rand(1, 3, 6, 6)
    expected = net(x)
    assert torch.allclose(rkan_mm.fuse(net)(x), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(net.part.bn, nn.Identity)
