"""Plugins in ResNets that have none: the same as mmdet's own."""

import copy
import pickle
import re

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import RKANet, plugged_backbone

NARROW = dict(base_channels=8, stem_channels=8)
POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
CONTEXT = dict(type='ContextBlock', ratio=1 / 4)
ECA = dict(type='rkan_mm.ECA')


def resnet(scope='mmpretrain', depth=50, **args):
    return dict(type=f'{scope}.ResNet', depth=depth, out_indices=(0, 1, 2, 3), **NARROW, **args)


def plugin(cfg=ECA, **args):
    return dict(cfg=dict(cfg), **args)


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize('kind', ['mmdet.ResNet', 'mmpretrain.ResNet', 'mmdet.ResNeSt'])
@pytest.mark.parametrize('position', POSITIONS)
def test_equals_mmdets_own_plugins(kind, position, image):
    plugins = [plugin(stages=(False, True, True, True), position=position),
               plugin(CONTEXT, stages=(True, False, False, True), position=position)]
    theirs = MMENGINE_MODELS.build(dict(resnet(plugins=copy.deepcopy(plugins)), type=kind.replace('pretrain', 'det')))
    ours = plugged_backbone(dict(resnet(), type=kind), plugins)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for model in (ours, theirs):
        model.eval()
    for a, b in zip(ours(image), theirs(image), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_basic_blocks_carry_it_before_the_addition(scope, image):
    model = plugged_backbone(resnet(scope, 18), [plugin()])
    model.eval()
    block = model.layer2[0]
    x = torch.rand(2, 8, 16, 16)
    out = block.conv2(block.relu(block.norm1(block.conv1(x))))
    out = block.eca(block.norm2.forward(out))  # `forward`: the norm itself, without the hook
    assert_close(block(x), (out + block.downsample(x)).relu())
    names = {name for name, _ in model.named_modules() if name.endswith('.eca')}
    assert names == {f'layer{i}.{j}.eca' for i in (1, 2, 3, 4) for j in (0, 1)}


@pytest.mark.parametrize('position', [None, 'after_conv2'])
def test_efficientnet_of_timm_carries_it_in_every_block(position):
    pytest.importorskip('timm')
    args = {} if position is None else dict(position=position)
    net = dict(type='mmpretrain.TIMMBackbone', model_name='tf_efficientnet_lite0', features_only=True)
    model = plugged_backbone(net, [plugin(dict(ECA, postfix='_out'), stages=(False, True, True, True, True, True, True),
                                          **args)])
    model.eval()
    stages = model.timm_model.blocks
    assert [sum(hasattr(block, 'eca_out') for block in stage) for stage in stages] == [0, 2, 2, 3, 3, 4, 1]
    block = stages[5][1]
    x = torch.rand(2, 192, 4, 4)
    out = block.bn2.forward(block.conv_dw(block.bn1(block.conv_pw(x))))
    if position:  # in front of the third convolution
        out = block.bn3(block.conv_pwl.forward(block.eca_out(out)))
    else:
        out = block.eca_out(block.bn3.forward(block.conv_pwl(out)))
    assert_close(block(x), out + x)


@pytest.mark.parametrize('position', POSITIONS)
def test_tridentnet_carries_it_in_every_branch(position, image):
    trident = dict(type='mmdet.TridentResNet', depth=50, num_branch=3, test_branch_idx=1, trident_dilations=(1, 2, 3),
                   num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,), **NARROW)
    ours = plugged_backbone(trident, [plugin(position=position)])
    theirs = MMENGINE_MODELS.build(dict(trident, plugins=[plugin(stages=(True,) * 3, position=position)]))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for mode in (True, False):
        for model in (ours, theirs):
            model.train(mode)
        assert_close(ours(image)[0], theirs(image)[0], rtol=1e-4, atol=1e-4)


def test_frozen_stages_norm_eval_and_init_cfg_reach_the_plugins():
    model = plugged_backbone(resnet(frozen_stages=2, norm_eval=True), [plugin(dict(type='rkan_mm.ELA'),
                                                                              stages=(False, True, True, True))])
    assert not any(p.requires_grad for p in model.layer2[0].ela.parameters())
    assert all(p.requires_grad for p in model.layer3[0].ela.parameters())
    model = plugged_backbone(dict(resnet(), init_cfg=dict(type='Constant', layer='Conv2d', val=0.5)),
                             [plugin(dict(type='rkan_mm.SE'))])
    model.init_weights()
    assert (model.layer1[0].se.squeeze.weight == 0.5).all()


def test_checkpointing_keeps_the_values(image):
    model, other = (plugged_backbone(resnet(with_cp=with_cp), [plugin()]) for with_cp in (False, True))
    other.load_state_dict(model.state_dict())
    image.requires_grad_()
    grads = []
    for m in (model, other):
        m.eval()
        m(image)[-1].sum().backward()
        grads.append(m.layer1[0].eca.conv.weight.grad)
    assert_close(*grads)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize('make', [copy.deepcopy, through_pickle])
def test_copies_are_independent(make, image):
    model = RKANet(plugged_backbone(resnet(), [plugin(dict(type='rkan_mm.SE'))])).eval()
    expected = model(image)[-1]
    other = make(model)
    assert_close(other(image)[-1], expected)
    other.backbone.layer3[0].se.excite.weight.data.fill_(3)
    assert not torch.allclose(other(image)[-1], expected)
    assert_close(model(image)[-1], expected)


def test_plain_checkpoint_loads_into_a_rkanet_around_it(image):
    plain = MMENGINE_MODELS.build(resnet())
    model = RKANet(dict(type='rkan_mm.PluggedBackbone', backbone=resnet(), plugins=[plugin()]))
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {re.sub(r'layer\d\.\d\.', '', key).split('.')[1] for key in missing} == {'eca', 'layer4'}
    assert 'backbone.layer1.0.eca.conv.weight' in missing
    assert len([key for key in missing if '.eca.' in key]) == 16


def test_replaces_a_module(image):
    densenet = dict(type='mmpretrain.DenseNet', arch=dict(growth_rate=4, depths=[1, 1, 1, 1], init_channels=8))
    plain = MMENGINE_MODELS.build(copy.deepcopy(densenet))
    model = plugged_backbone(densenet, replace={'transitions.3.1': dict(type='torch.nn.Identity')})
    model.load_state_dict(plain.state_dict(), strict=True)
    assert model(image)[-1].min() < 0
    assert_close(model(image)[-1].relu(), plain(image)[-1])


@pytest.mark.parametrize(('backbone', 'args', 'message'), [
    (resnet(), dict(plugins=[plugin(position='after_conv4')]),
     "PluggedBackbone: ResNet: layer1.0: no position 'after_conv4' in Bottleneck; there are after_conv1, after_conv2, "
     'after_conv3'),
    (dict(type='mmpretrain.Res2Net', depth=50), dict(plugins=[plugin(position='after_conv1')]),
     "layer1.0: no position 'after_conv1' in Bottle2neck; there are after_conv2, after_conv3"),
    (dict(type='mmpretrain.MobileNetV2'), dict(plugins=[plugin()]),
     'PluggedBackbone: MobileNetV2: layer1.0: InvertedResidual has no conv1, conv2, ...'),
    (resnet(), dict(plugins=[plugin(stages=(True, True))]),
     'PluggedBackbone: ResNet has 4 stages, got stages=(True, True)'),
    (resnet(), dict(plugins=[plugin(), plugin()]),
     "layer1.0: Bottleneck has a 'eca' already; give the plugin a postfix"),
    (resnet(), dict(plugins=[plugin(dict(type='rkan_mm.ShuffleAttention'))]), 'layer1.0: ShuffleAttention: 64 groups'),
    (resnet(), dict(replace=dict(layer5=dict(type='torch.nn.Identity'))),
     "PluggedBackbone: ResNet has no module 'layer5'"),
    (dict(type='mmpretrain.VGG', depth=11), dict(plugins=[plugin()]),
     'PluggedBackbone: VGG has no stages layer1, layer2, ...; it has features'),
], ids=['position', 'other position', 'no convs', 'stages', 'twice', 'channels', 'replace', 'no stages'])
def test_errors(backbone, args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plugged_backbone(backbone, **args)


def test_a_trace_can_be_traced_again(image):
    """As torch.ao.quantization.quantize_fx and feature extractors over feature extractors do."""
    model = plugged_backbone(dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8),
                             [dict(cfg=dict(type='rkan_mm.ECA'))])
    model.eval()
    traced = torch.fx.symbolic_trace(torch.fx.symbolic_trace(model))
    assert_close(traced(image), model(image))
