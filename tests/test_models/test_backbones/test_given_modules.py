"""A RKANet over modules as they are given, and with others in the place of its parts."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.registry import MODELS as MMENGINE_MODELS
from test_recipes import CONVNEXT, RESNET
from torch import nn
from torch.testing import assert_close
from torch.utils.hooks import RemovableHandle
from torchvision.models.feature_extraction import create_feature_extractor

from rkan_mm.models import RKANet, plugged_backbone
from rkan_mm.registry import MODELS


# -- what is given as a module -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('change', [
    dict(dtype=torch.float64), dict(dtype=torch.bfloat16), dict(device='meta'), dict(in_channels=1),
    dict(in_channels=4), dict(in_channels=5, dtype=torch.float64)], ids=str)
def test_a_backbone_in_another_dtype_device_or_number_of_channels(change):
    channels = change.pop('in_channels', 3)
    plain = MMENGINE_MODELS.build(dict(type='mmpretrain.ResNet', depth=18, in_channels=channels, base_channels=8,
                                       stem_channels=8)).to(**change)
    first = next(plain.parameters())
    plain = plugged_backbone(plain, [dict(cfg=dict(type='rkan_mm.ECA'))],
                             replace=dict(bn1=dict(type='torch.nn.BatchNorm2d', num_features=8)))
    net = RKANet(plain, ('layer3', 'layer4'))
    assert {(p.dtype, p.device.type) for p in net.parameters()} == {(first.dtype, first.device.type)}
    out = net(torch.rand(2, channels, 64, 64).to(first))[-1]
    assert (out.shape, out.dtype, out.device) == ((2, 64, 2, 2), first.dtype, first.device)


@pytest.mark.parametrize('kind', ['mmdet', 'mmpretrain'])
def test_a_backbone_that_predicts(kind):
    plain = MMENGINE_MODELS.build(dict(RESNET, type=f'{kind}.ResNet'))
    plain.eval()
    net = RKANet(plain, ('layer3', 'layer4'))
    assert not any(module.training for module in net.modules())
    x = torch.rand(2, 3, 64, 64)
    assert_close(net(x[:1])[-1], net(x)[-1][:1])


@pytest.mark.parametrize(('backbone', 'stages', 'unused'), [
    (dict(RESNET, out_indices=(0, 1, 2)), ('layer4',), 'layer4'),
    (dict(RESNET, out_indices=(0,)), ('layer1', 'layer2'), 'layer2'),
    (dict(CONVNEXT, out_indices=[1]), ('stages.0', 'stages.2'), 'stages.2'),
    (dict(RESNET, out_indices=(0, 1, 2), frozen_stages=4), ('layer4',), 'layer4'),
    (dict(RESNET, out_indices=(0, 1, 2), with_cp=True), ('layer3', 'layer4'), 'layer4'),
])
def test_a_block_that_no_output_depends_on(backbone, stages, unused):
    with pytest.raises(ValueError, match=rf"RKANet: no output of .* with out_indices=.* depends on stage '{unused}'"):
        RKANet(backbone, stages)
    RKANet(dict(RESNET, out_indices=(0, 1, 2), with_cp=True), ('layer2', 'layer3'))


# -- other modules in the place of a stage -----------------------------------------------------------------------------
def test_a_stage_that_is_replaced_keeps_its_block():
    net = RKANet(RESNET, ('layer3', 'layer4'))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = net(x)[-1]
    old = net.layer4
    net.layer4 = nn.Sequential(nn.Identity(), old)
    assert_close(net(x)[-1], expected)
    net.layer4 = copy.deepcopy(old)  # with copies of our hooks
    assert_close(net(x)[-1], expected)
    assert_close(net.backbone(x)[-1], expected)
    nn.init.zeros_(net.bridges['layer4'].block.norm2.weight)
    assert not torch.allclose(net(x)[-1], expected)
    del net.backbone.layer4
    with pytest.raises(AttributeError, match="RKANet: stage 'layer4' is no longer in ResNet"):
        net(x)


def test_a_stage_that_two_nets_share():
    """As of nets for two kinds of images, whose deep stages have the same weights."""
    nets = [RKANet(copy.deepcopy(RESNET), ('layer3:layer4', 'layer4')).eval() for _ in range(2)]
    x, first = torch.rand(1, 3, 64, 64), nets[0]
    for name in ('layer1', 'layer2', 'layer3', 'conv1', 'bn1'):
        getattr(nets[1], name).load_state_dict(getattr(first, name).state_dict())
    nets[1].layer4.load_state_dict(first.layer4.state_dict())
    expected = [net(x)[-1] for net in nets]
    assert not torch.allclose(*expected)
    nets[1].layer4 = first.layer4
    for _ in range(2):
        for net, right in zip(nets, expected, strict=True):
            assert_close(net(x)[-1], right)
    assert_close(copy.deepcopy(nets[1])(x)[-1], expected[1])


def test_hooks_that_somebody_clears_are_hung_again():
    net = RKANet(copy.deepcopy(RESNET), ('layer2:layer3', 'layer4'))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = net(x)[-1]
    for module in net.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for other in (net, copy.deepcopy(net)):
        assert_close(other(x)[-1], expected)
        assert sum(len(module._forward_hooks) for module in other.modules()) == 2


@pytest.mark.parametrize('backbone', [
    RESNET, dict(type='rkan_mm.PluggedBackbone', backbone=RESNET, plugins=[dict(cfg=dict(type='rkan_mm.ECA'))])],
    ids=['plain', 'plugged'])
def test_hooks_in_another_process(backbone):
    """Their ids are counted from 0 there, and would run into those that came along."""
    net = RKANet(copy.deepcopy(backbone), ('layer2:layer3', 'layer4'))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    expected, text = net(x)[-1], pickle.dumps(net)
    before = RemovableHandle.next_id
    RemovableHandle.next_id = 0
    other = pickle.loads(text)
    taken = [key for module in other.modules() for key in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert RemovableHandle.next_id > max(taken)
    assert_close(other(x)[-1], expected)
    RemovableHandle.next_id = before


def test_a_rkanet_over_a_rkanet():
    net = RKANet(dict(type='rkan_mm.RKANet', backbone=copy.deepcopy(RESNET), stages=('layer4',)), ('backbone.layer4',))
    inner = net.backbone
    assert [list(each.bridges) for each in (net, inner)] == [['backbone_layer4'], ['layer4']]
    net.eval()
    x, plain = torch.rand(1, 3, 64, 64), copy.deepcopy(inner.backbone)
    expected = net(x)[-1]
    assert_close(copy.deepcopy(net)(x)[-1], expected)
    for module in plain.modules():
        module._forward_hooks.clear()
    for each in (net, inner):
        nn.init.zeros_(next(iter(each.bridges.values())).block.norm2.weight)
        assert not torch.allclose(net(x)[-1], expected)
        expected = net(x)[-1]
    assert_close(expected, plain(x)[-1])


def test_a_backbone_that_another_rkanet_has():
    """Its hooks would run the blocks of both."""
    inner = MODELS.build(RESNET)
    copied = copy.deepcopy(inner)
    net, x = RKANet(inner).eval(), torch.rand(1, 3, 64, 64)
    expected = net(x)[-1]
    for stages in (('layer4',), ('layer3',)):
        with pytest.raises(ValueError, match="'layer4' of this ResNet carries the RKAN block of another RKANet"):
            RKANet(inner, stages=stages)
    with pytest.raises(ValueError, match="'2' of this Sequential carries"):
        RKANet(nn.Sequential(nn.Conv2d(3, inner.layer4[0].conv1.in_channels, 1), nn.ReLU(), inner.layer4), stages='2')
    assert net(x)[-1].equal(expected)
    assert not RKANet(copied).eval()(x)[-1].equal(expected)


def test_attributes_are_deleted_where_they_are():
    net = RKANet(nn.Sequential(OrderedDict(layer4=nn.Conv2d(3, 4, 3, padding=1), fc=nn.Conv2d(4, 4, 1))))
    del net.fc
    assert not hasattr(net.backbone, 'fc')
    assert net(torch.rand(2, 3, 9, 9)).shape == (2, 4, 9, 9)
    net.own = 1
    del net.own, net.bridges
    assert not hasattr(net, 'bridges')
    with pytest.raises(AttributeError, match='nothing'):
        del net.nothing


def test_a_stage_over_two_modules_that_are_not_called_in_turn():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(self.first(x)) + self.last(self.first(2 * x))

    net = RKANet(Twice(), ('first:last',))
    net.eval()
    x, block, plain = torch.rand(1, 3, 8, 8), net.bridges['first-last'].block, copy.deepcopy(net.backbone)
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    assert_close(net(x), plain(x) + block(x) + block(2 * x))
    with pytest.raises(RuntimeError, match="stage 'first:last': 'last' was called, but 'first' was not called since"):
        net.backbone.last(net.backbone.last(net.backbone.first(x)))


def test_the_plain_backbone_of_a_copied_part():
    net = RKANet(RESNET)
    net.eval()
    part, x = copy.deepcopy(net.backbone), torch.rand(1, 3, 64, 64)
    assert_close(part(x)[-1], net(x)[-1])


def test_data_parallel_refuses():
    for net, message in ((RKANet(RESNET), 'RKANet: nn.DataParallel'),
                         (MODELS.build(dict(type='PluggedBackbone', backbone=RESNET,
                                            plugins=[dict(cfg=dict(type='rkan_mm.ECA'))])).layer1[0],
                          'PluggedBackbone: nn.DataParallel')):
        with pytest.raises(RuntimeError, match=f'{message} runs copies .* use DistributedDataParallel'):
            net._replicate_for_data_parallel()(torch.rand(1, 8, 16, 16))


def test_a_plugin_behind_a_norm_that_is_folded_away():
    net = MODELS.build(dict(type='PluggedBackbone', backbone=RESNET, plugins=[
        dict(cfg=dict(type='rkan_mm.ECA'), position='after_conv1'), dict(cfg=dict(type='rkan_mm.SE'))]))
    net.eval()
    x, calls = torch.rand(1, 3, 64, 64), []
    with torch.no_grad():
        expected = net(x)[-1]
        fused = fuse_conv_bn(copy.deepcopy(net))
        for name, module in fused.named_modules():
            if name.endswith(('.eca', '.squeeze_excitation', '.se')):
                module.register_forward_hook(lambda *_: calls.append(1))
        assert_close(fused(x)[-1], expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 16


@pytest.mark.parametrize('where', [torch.inference_mode, torch.no_grad, lambda: torch.autocast('cpu', torch.bfloat16),
                                   lambda: torch.device('meta')], ids=['inference', 'no_grad', 'autocast', 'meta'])
def test_built_in_any_mode(where):
    with where():
        net = RKANet(copy.deepcopy(RESNET), ('layer3', 'layer4'))
        plain = MMENGINE_MODELS.build(RESNET)
        net(torch.rand(2, 3, 64, 64))
    assert {(p.dtype, p.device.type, p.is_inference()) for p in net.parameters()} == {
        (p.dtype, p.device.type, p.is_inference()) for p in plain.parameters()}


@pytest.mark.parametrize('parts', [
    [['conv1', 'bn1', 'relu'], ['layer4.1.conv2', 'layer4.1.bn2']], [['layer3.0.conv1', 'layer3.0.bn1']]], ids=str)
def test_modules_fused_by_torch(parts):
    net = RKANet(dict(type='rkan_mm.PluggedBackbone', backbone=copy.deepcopy(RESNET), plugins=[
        dict(cfg=dict(type='rkan_mm.ECA'), position='after_conv1'), dict(cfg=dict(type='rkan_mm.SE'))]))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    fused = torch.ao.quantization.fuse_modules(net.backbone, parts)  # which moves hooks to other modules
    assert_close(fused(x)[-1], net(x)[-1], rtol=1e-4, atol=1e-5)
    net.backbone = fused
    assert_close(fused(x)[-1], net(x)[-1], rtol=1e-4, atol=1e-5)


def test_a_stage_that_is_compiled():
    net = RKANet(copy.deepcopy(RESNET), ('layer3', 'layer4'))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = net(x)[-1]
    net.layer4 = torch.compile(net.layer4, backend='eager')
    assert_close(net(x)[-1], expected)
    net.layer3.compile(backend='eager')
    assert_close(net(x)[-1], expected)


def test_a_backbone_with_a_form_for_deployment():
    net = RKANet(dict(type='mmpretrain.RepVGG', out_indices=(3,), arch=dict(
        num_blocks=[1] * 4, width_factor=[0.125] * 4, group_layer_map=None, se_cfg=None, stem_channels=8)),
                 ('stage_4',))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    expected = net(x)[-1]
    net.switch_to_deploy()
    assert_close(net(x)[-1], expected, rtol=1e-4, atol=1e-5)


def test_features_of_a_stage_have_its_block():
    net = RKANet(copy.deepcopy(RESNET), ('layer3', 'layer4'))
    net.eval()
    x = torch.rand(1, 3, 64, 64)
    outs = create_feature_extractor(net, {'backbone.layer3': 'c4', 'backbone.layer4': 'c5'})(x)
    assert_close([outs['c4'], outs['c5']], list(net(x)[2:]))


def test_a_backbone_that_takes_no_small_images():
    class Large(nn.Sequential):
        def forward(self, x):
            if self[0](x).shape[-1] < 128:
                raise RuntimeError('image is smaller than 128')
            return super().forward(x)

    net = Large(nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(RuntimeError, match=r'given an image of zeros \(1, 3, 64, 64\), and failed: image is smaller '
                                           r'than 128. .* input_size=\(512, 512\)'):
        RKANet(net, ('0',), input_size=(64, 64))
    RKANet(net, ('0',))


@pytest.mark.parametrize(('cfg', 'stage'), [
    (dict(type='mmpretrain.EfficientFormer', arch=dict(layers=[1, 1, 1, 1], embed_dims=[8, 8, 16, 16], vit_num=1,
                                                       downsamples=[False, True, True, True])), 'network.2'),
    (dict(type='mmpretrain.TIMMBackbone', model_name='efficientvit_m0', features_only=True), 'timm_model.stages_2')],
    ids=['mmpretrain', 'timm'])
def test_a_backbone_that_keeps_its_attention_for_eval_mode(cfg, stage):
    if 'TIMM' in cfg['type']:
        pytest.importorskip('timm')
    plain, net = MMENGINE_MODELS.build(copy.deepcopy(cfg)), RKANet(cfg, (stage,))
    assert [vars(module).keys() for module in net.backbone.modules()] == [
        vars(module).keys() for module in plain.modules()]
    other, x = copy.deepcopy(net), torch.rand(1, 3, 224, 224)  # as EMAHook before a training
    for each in (net, other):
        each.eval()
    assert_close(other(x)[-1], net(x)[-1])
