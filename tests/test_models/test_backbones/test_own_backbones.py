"""A RKANet over backbones as users write them."""

import logging
from functools import partial

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import RKANet

NAMES = 'layer1', 'layer2', 'layer3'


class Plain(nn.Module):
    """Of three stages, each of which gives an output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4, 1)
        for i, name in enumerate(NAMES):
            setattr(self, name, nn.Sequential(nn.Conv2d(4 << i, 8 << i, 3, 2, 1), nn.BatchNorm2d(8 << i), nn.ReLU()))

    def stages(self, x):
        x, outs = self.stem(x), []
        for name in NAMES:
            x = getattr(self, name)(x)
            outs.append(x)
        return outs

    def forward(self, x):
        return self.stages(x)


class Hooked(Plain):
    """Its outputs are collected by hooks, as in timm's nets of Xception."""

    def __init__(self):
        super().__init__()
        self.outs = {}
        for name in NAMES:
            getattr(self, name).register_forward_hook(partial(self.collect, name))

    def collect(self, name, module, args, out):
        self.outs[name] = out

    def forward(self, x):
        self.stages(x)
        return list(self.outs.values())


class SeveralPictures(Plain):
    def forward(self, *pictures):
        return [out for x in pictures for out in self.stages(x)]


class TwoPictures(Plain):
    def forward(self, x, thermal):
        return [*self.stages(x), *self.stages(thermal)]


class WithoutGradients(Plain):
    def forward(self, x):
        with torch.no_grad():
            return self.stages(x)


class ForTraining(Plain):
    def forward(self, x, metas=None):
        return self.stages(x)


class LastOutput(RKANet):
    def forward(self, x):
        return super().forward(x)[-1:]


class LastOutputOfAll(RKANet):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)[-1:]


@pytest.mark.parametrize('stages', [('layer2',), ('layer3',), ('layer2:layer3', 'layer3')], ids='+'.join)
def test_outputs_collected_by_hooks_have_the_blocks(stages):
    hooked, plain = (RKANet(kind(), stages, fusion=dict(type='Gating')).eval() for kind in (Hooked, Plain))
    hooked.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    assert_close(hooked(x), plain(x), rtol=0, atol=0)
    for bridge, other in zip(hooked.bridges.values(), plain.bridges.values(), strict=True):
        assert (bridge.block.kan2 is None) == (other.block.kan2 is None)
    blocks = [place for bridge in hooked.bridges.values() for place in bridge.places]
    for place in blocks:
        place.leave()
    assert_close(hooked(x), plain(x), rtol=0, atol=0)


def test_a_hook_that_changes_what_a_stage_gives_comes_before_its_block():
    hooked, plain, seen = Plain(), Plain(), []
    hooked.layer2.register_forward_hook(lambda *args: seen.append(None))
    hooked.layer2.register_forward_hook(lambda module, args, out: (out[:, :4],))
    hooked.layer2.register_forward_hook(lambda module, args, out: out[0] / 2)
    hooked.layer2.register_forward_hook(lambda *args: seen.append(args[-1]))
    hooked.layer3 = nn.Conv2d(4, 4, 1)
    for name in ('stem', *NAMES[:2]):
        getattr(hooked, name).load_state_dict(getattr(plain, name).state_dict())
    net, x = RKANet(hooked, ('layer2',)).eval(), torch.rand(2, 3, 64, 64)
    out = net(x)[1]
    inner = plain.eval().layer1(plain.stem(x))
    assert_close(out, plain.layer2(inner)[:, :4] / 2 + net.bridges['layer2'].block(inner))
    assert seen[-1] is out


@pytest.mark.parametrize('kind', [SeveralPictures, TwoPictures])
def test_backbones_of_several_pictures(kind):
    net, plain = RKANet(kind(), ('layer3',)).eval(), RKANet(Plain(), ('layer3',)).eval()
    plain.load_state_dict(net.state_dict())
    x, other = torch.rand(2, 1, 3, 64, 64)
    assert_close(net(x, other), [*plain(x), *plain(other)])


class Failing(Plain):
    def forward(self, x, thermal):
        return self.stages(x + thermal) / 0


def test_what_a_backbone_of_several_pictures_has_against_them_is_told():
    with pytest.raises(RuntimeError, match=r"unsupported operand .* 'NoneType'.* \(with images in the place of further "
                                           r"arguments: unsupported operand type\(s\) for /: 'list' and 'int'"):
        RKANet(Failing(), ('layer3',))


@pytest.mark.parametrize('kind', [Plain, ForTraining, SeveralPictures])
def test_a_subclass_has_its_own_forward(kind):
    assert len(LastOutput(kind(), ('layer3',))(torch.rand(2, 3, 64, 64))) == 1


@pytest.mark.parametrize(('kind', 'more', 'keywords'), [
    (Plain, 0, {}), (ForTraining, 0, dict(metas=[])), (SeveralPictures, 1, {}), (TwoPictures, 1, {})])
def test_a_subclass_hands_on_what_it_is_given(kind, more, keywords):
    x = torch.rand(2, 3, 64, 64)
    net = LastOutputOfAll(kind(), ('layer3',)).eval()
    out, = net(x, *[x] * more, **keywords)
    assert_close(out, RKANet.forward(net, x, *[x] * more, **keywords)[-1])


@pytest.mark.parametrize(('kind', 'told'), [(Plain, 0), (WithoutGradients, 1)])
def test_a_backbone_without_gradients_is_told_of(kind, told, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        with torch.no_grad():
            RKANet(kind(), ('layer3',))
    finally:
        logger.removeHandler(caplog.handler)
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert [f'no output of {kind.__name__} has gradients' in each for each in warned] == [True] * told
