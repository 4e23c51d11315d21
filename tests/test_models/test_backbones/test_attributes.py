"""Attributes of a RKANet and of the backbone in it: what recipes set, what counters hang on each module."""

import copy
import io
import re

import pytest
import torch
from mmcv.cnn import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from test_rkanet import BACKBONES, NARROW, build
from torch import nn

from rkan_mm.models import RKANet
from rkan_mm.registry import MODELS

RESNET = dict(type='mmdet.ResNet', depth=18, **NARROW)


# -- what others hang on each module belongs to each alone -------------------------------------------------------------
@pytest.mark.parametrize('name', ['mmdet-resnet18', 'ecanet', 'densenet', 'convnext', 'vgg'])
def test_mmcvs_counter_of_flops(name):
    """It gives each module a sum over its children, children first."""
    plain, net = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0])), build(name)
    sums = []
    for model in (plain, net):
        printed = io.StringIO()
        get_model_complexity_info(model, (3, 64, 64), ost=printed)
        assert not any('accumulate_flops' in module.__dict__ for module in model.modules())
        sums.append(re.findall(r'^ +([\d.]+ M), [\d.]+% Params, ([\d.]+ GFLOPs)', printed.getvalue(), re.MULTILINE))
    assert sums[0][0] == sums[1][1]  # the backbone, and the RKANet before it
    assert float(sums[1][0][0].split()[0]) >= float(sums[1][1][0].split()[0])


def test_buffers_in_each_module():
    """As thop's counter registers them, children first."""
    net = RKANet(copy.deepcopy(RESNET))
    for count in (1, 2):
        net.apply(lambda module, count=count: module.register_buffer('total_ops', torch.full((), count)))
        assert {module._buffers['total_ops'].item() for module in net.modules()} == {count}
    assert net.total_ops.item() == net.backbone.total_ops.item() == 2
    net.backbone.register_module('extra', nn.Identity())
    net.register_module('extra', nn.Identity())
    net.apply(lambda module: module.register_parameter('scale', nn.Parameter(torch.ones(1))))
    net.apply(lambda module: setattr(module, 'place', id(module)))
    assert all(module.__dict__['place'] == id(module) and 'scale' in module._parameters for module in net.modules())
    net.apply(lambda module: delattr(module, 'place'))
    assert not any(hasattr(module, 'place') for module in net.modules())


# -- what the backbone has is set in it --------------------------------------------------------------------------------
def test_a_stage_deleted_and_set_again():
    net = RKANet(copy.deepcopy(RESNET))
    net.eval()
    x, stage = torch.rand(1, 3, 64, 64), net.layer4
    expected = net(x)[-1]
    del net.layer4
    assert hasattr(net, 'inplanes')
    assert not hasattr(net, 'layer4')
    net.layer4 = stage
    assert net.backbone.layer4 is stage
    assert net(x)[-1].equal(expected)
    net.add_module('layer4', nn.Sequential(stage))
    assert net.backbone.layer4[0] is stage
    assert net(x)[-1].equal(expected)
    net.register_buffer('mine', torch.ones(1))
    assert 'mine' in net._buffers
    net.backbone = nn.Sequential(nn.Conv2d(3, 32, 1))  # another backbone has other attributes
    net.layer3 = 1
    assert net.__dict__['layer3'] == 1


def test_arguments_of_the_backbone():
    net = RKANet(dict(type='rkan_mm.PluggedBackbone', backbone=copy.deepcopy(RESNET),
                      plugins=[dict(cfg=dict(type='rkan_mm.ECA'))]), out_indices=(1, 3), pretrained='somewhere')
    assert (net.out_indices, net.init_cfg, net.backbone.init_cfg['checkpoint']) == ((1, 3), None, 'somewhere')
    assert len(net(torch.rand(1, 3, 64, 64))) == 2
    with pytest.raises(TypeError, match=r'RKANet: out_indices=\(1, 3\) needs a config of a backbone, got a ResNet'):
        RKANet(net.backbone, out_indices=(1, 3))
    with pytest.raises(TypeError, match="unexpected keyword argument 'stage'"):
        RKANet(copy.deepcopy(RESNET), stage=('layer4',))
    with pytest.raises(ValueError, match='RKANet: frozen_stages=1, but the stages are layer4; those of the inner'):
        RKANet(copy.deepcopy(RESNET), frozen_stages=1)


def test_arguments_of_a_plugged_backbone():
    plugged = dict(type='rkan_mm.PluggedBackbone', plugins=[dict(cfg=dict(type='rkan_mm.ECA'))])
    net = MODELS.build(dict(plugged, backbone=copy.deepcopy(RESNET), out_indices=(1, 3), pretrained='somewhere'))
    assert (net.out_indices, net.init_cfg['checkpoint']) == ((1, 3), 'somewhere')
    with pytest.raises(TypeError, match="PluggedBackbone: pretrained='somewhere' needs a config of a backbone"):
        MODELS.build(dict(plugged, backbone=net, pretrained='somewhere'))


def test_get_model_with_other_outputs():
    from mmpretrain import get_model

    cfg = Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18, **NARROW)),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', in_channels=64, num_classes=3))))
    model = get_model(cfg, backbone=dict(out_indices=(0, 1, 2, 3)))
    assert [out.shape[1] for out in model.extract_feat(torch.rand(1, 3, 64, 64))] == [8, 16, 32, 64]


def test_a_lora_model_around_it():
    swin, stages = BACKBONES['swin']
    found = []
    for module in (swin, dict(type='rkan_mm.RKANet', backbone=swin, stages=stages, input_size=(224, 224))):
        lora = MMENGINE_MODELS.build(dict(type='mmpretrain.LoRAModel', module=copy.deepcopy(module), rank=2,
                                          targets=[dict(type='qkv')]))
        found.append([getattr(lora, name) for name in ('out_indices', 'num_layers', 'embed_dims', 'frozen_stages')]
                     + [lora.get_layer_depth('patch_embed.projection.weight')])
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            lora.nothing  # noqa: B018
    assert found[0] == found[1]
    assert isinstance(lora.stages, nn.ModuleList)


def test_names_of_parameters_for_timms_optimizers():
    timm = pytest.importorskip('timm')
    from timm.optim import param_groups_layer_decay

    plain = timm.create_model('convnext_atto')
    plain.no_weight_decay = lambda: {'stem.0.weight'}
    found = []
    for net, prefix in ((copy.deepcopy(plain), ''), (RKANet(plain, ('stages.1', 'stages.3')), 'backbone.')):
        assert net.no_weight_decay() == {f'{prefix}stem.0.weight'}
        names = {id(p): name for name, p in net.named_parameters()}
        found.append({names[id(p)].removeprefix(prefix): group['lr_scale']
                      for group in param_groups_layer_decay(net, layer_decay=0.5) for p in group['params']})
    of_plain, ours = found
    blocks = {name: scale for name, scale in ours.items() if name.startswith('bridges.')}
    assert {name: scale for name, scale in ours.items() if name not in blocks} == of_plain
    for stage in ('1', '3'):
        last = max(scale for name, scale in of_plain.items() if name.startswith(f'stages.{stage}.'))
        assert {scale for name, scale in blocks.items() if name.startswith(f'bridges.stages_{stage}.')} == {last}
