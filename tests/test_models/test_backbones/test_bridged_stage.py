"""Stages that a backbone runs again, by parts or not at all."""

import copy
import pickle

import pytest
import torch
from test_rkanet import NARROW
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from rkan_mm.models import RKANet

RESNET = dict(type='mmdet.ResNet', depth=18, **NARROW)


def gradients(net, *images):
    losses = [sum(out.square().mean() for out in net(image)) for image in images]
    for loss in losses[::-1]:
        loss.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found


class Chain(nn.Module):
    """Three convolutions; with ``cp``, each in a checkpoint of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.cp = None

    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = layer(x) if self.cp is None else checkpoint(layer, x, use_reentrant=self.cp)
        return (x,)


def test_modules_of_a_span_in_checkpoints_of_their_own():
    net = RKANet(Chain(), ('a:b', 'c'))
    net.eval()
    images = [torch.rand(1, 3, 8, 8, requires_grad=True) for _ in range(3)]
    expected = gradients(net, *images)
    net.cp = False
    found = gradients(net, *images)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name])
    assert not len(net.bridges['a-b']._again)
    net.cp = True
    with pytest.raises(RuntimeError, match="stage 'a:b': 'b' was called, but 'a' was not .* need use_reentrant=False"):
        gradients(net, *images)


@pytest.mark.parametrize(('model', 'features', 'stages', 'parts'), [
    ('efficientnet_lite0', True, ('timm_model.blocks.3', 'timm_model.blocks.5:timm_model.blocks.6'), None),
    ('resnet10t', False, ('timm_model.layer4',), 'timm_model.layer4.0'),
    ('mobilenetv3_small_050', False, ('timm_model.blocks.4',), 'timm_model.blocks.4.0:timm_model.blocks.4.2')])
def test_checkpointing_of_timm(model, features, stages, parts):
    pytest.importorskip('timm')
    cfg = dict(type='mmpretrain.TIMMBackbone', model_name=model, features_only=features)
    net = RKANet(copy.deepcopy(cfg), stages).eval()
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    if parts:
        net.timm_model.set_grad_checkpointing(True)
        with pytest.raises(RuntimeError, match=rf"did not call '{stages[0]}', .* name them: stages=\('{parts}', \)"):
            net(x)
        net = RKANet(cfg, (parts,)).eval()
    expected = gradients(net, x)
    net.timm_model.set_grad_checkpointing(True)
    found = gradients(net, x)
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def without_block(stage):
    stage = copy.deepcopy(stage)
    stage._forward_hooks.clear()
    return stage


@pytest.mark.parametrize('change', [
    lambda net, x: setattr(net, 'layer4', torch.jit.trace(without_block(net.layer4), torch.rand(1, 32, 4, 4))),
    lambda net, x: setattr(net, 'backbone', torch.compile(net.backbone, backend='eager')),
    lambda net, x: net.backbone.compile(backend='eager'),
    lambda net, x: net.layer4.compile(backend='eager'),
    lambda net, x: net.compile(backend='eager')], ids=['trace', 'compiled', 'compile', 'stage', 'whole'])
def test_a_backbone_that_a_tracer_or_compiler_has_seen(change):
    net = RKANet(copy.deepcopy(RESNET))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        change(net, x)
        for _ in range(2):
            assert_close(net(x), expected)


def test_maps_with_channels_behind():
    class Behind(nn.Sequential):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1))

    with pytest.raises(ValueError, match=r"input of stage '0' of Behind is of shape \(1, 64, 64, 3\) for images of "
                                         r'64 x 64 px, as of \(B, H, W, C\)'):
        RKANet(Behind(nn.Linear(3, 4)), ('0',))


class Doubling(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.inner, self.calls = module, 0

    def forward(self, x, out):
        self.calls += 1
        return 2 * self.inner(x, out)


@pytest.mark.parametrize('stage', ['layer4', 'layer3:layer4'])
def test_what_takes_the_place_of_a_block(stage):
    net = RKANet(copy.deepcopy(RESNET), ('layer2', stage))
    net.eval()
    key, x = stage.replace(':', '-'), torch.rand(1, 3, 64, 64)
    expected, block = net(x)[-1], net.bridges[stage.replace(':', '-')]
    net.bridges[key] = Doubling(block)
    for each in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_close(each(x)[-1], 2 * expected)
        assert_close(each.backbone(x)[-1], 2 * expected)
        assert each.bridges[key].calls == net.bridges[key].calls
    net.bridges[key] = copy.deepcopy(block)
    nn.init.zeros_(block.block.norm2.weight)
    assert_close(net(x)[-1], expected)
    del net.bridges[key]
    plain = copy.deepcopy(net)
    plain.load_state_dict(net.state_dict(), strict=True)
    assert not torch.allclose(net(x)[-1], expected)
    net.bridges['layer2'].block.requires_grad_(False)
    assert sum(len(module._forward_hooks) for module in net.modules()) == 1
