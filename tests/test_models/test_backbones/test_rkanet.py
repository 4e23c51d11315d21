"""The contract of the wrapper, over a table of tiny backbones of mmdet, mmpretrain and TIMM."""

import copy
import io
import pickle
import re

import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import RKANet
from rkan_mm.registry import MODELS

NARROW = dict(base_channels=8, stem_channels=8)
# name: (backbone config, its stages)
BACKBONES = {
    'mmdet-resnet50': (dict(type='mmdet.ResNet', depth=50, **NARROW), ('layer3', 'layer4')),
    'mmdet-resnet18': (dict(type='mmdet.ResNet', depth=18, **NARROW), ('layer4',)),
    'mmdet-resnetv1d': (dict(type='mmdet.ResNetV1d', depth=50, **NARROW), ('layer4',)),
    'mmdet-resnext': (dict(type='mmdet.ResNeXt', depth=50, groups=2, base_width=4, **NARROW), ('layer2', 'layer4')),
    'mmdet-res2net': (dict(type='mmdet.Res2Net', depth=50, scales=2, base_width=26, **NARROW), ('layer4',)),
    'mmpretrain-resnet34': (dict(type='mmpretrain.ResNet', depth=34, base_channels=8, stem_channels=8,
                                 out_indices=(0, 1, 2, 3)), ('layer1', 'layer2', 'layer3', 'layer4')),
    'mmpretrain-resnet50': (dict(type='mmpretrain.ResNet', depth=50, base_channels=8, stem_channels=8,
                                 expansion=4), ('layer4',)),
    'mmpretrain-seresnet': (dict(type='mmpretrain.SEResNet', depth=50, base_channels=32, stem_channels=8),
                            ('layer4',)),
    'mmpretrain-densenet': (dict(type='mmpretrain.DenseNet', out_indices=(0, 1, 2, 3),
                                 arch=dict(growth_rate=4, depths=[1, 1, 1, 1], init_channels=8)),
                            ('stages.0:transitions.0', 'stages.3:transitions.3')),
    'timm-resnet10t': (dict(type='mmpretrain.TIMMBackbone', model_name='resnet10t', features_only=True),
                       ('timm_model.layer3', 'timm_model.layer4')),
}
contract = pytest.mark.parametrize('name', BACKBONES)
IMAGE = (2, 3, 64, 64)


@pytest.fixture
def image():
    return torch.rand(IMAGE)


def build(name, **args):
    backbone, stages = BACKBONES[name]
    return RKANet(copy.deepcopy(backbone), stages, **args)


def flat(outputs):
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


@contract
def test_shapes_are_those_of_the_plain_backbone(name, image):
    model = build(name).eval()
    plain = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0]))
    plain.eval()
    assert [out.shape for out in flat(model(image))] == [out.shape for out in flat(plain(image))]


@contract
def test_zero_init_residual_is_the_plain_backbone_and_one_is_not(name, image):
    model = build(name, block=dict(type='RKANBlock', zero_init_residual=True)).eval()
    plain = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0]))
    plain.load_state_dict(model.backbone.state_dict())
    plain.eval()
    for ours, theirs in zip(flat(model(image)), flat(plain(image)), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)
    for bridge in model.bridges.values():
        nn.init.ones_(bridge.block.norm2.weight)
    assert not torch.allclose(flat(model(image))[-1], flat(plain(image))[-1])


@contract
def test_only_the_last_stage_has_a_second_kan_conv(name):
    model = build(name)
    assert [bridge.block.kan2 is not None for bridge in model.bridges.values()] == \
        [False] * (len(model.bridges) - 1) + [True]


@contract
@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
def test_plain_checkpoint_loads_with_only_block_keys_missing(name, loader):
    model = build(name)
    plain = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0]))
    detector, plain_detector = nn.ModuleDict({'backbone': model}), nn.ModuleDict({'backbone': plain})
    for target, source, prefix in ((model, plain, ''), (detector, plain_detector, 'backbone.')):
        for parameter in plain.parameters():
            nn.init.normal_(parameter)
        if loader == 'torch':
            missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
            assert not unexpected
            assert {key.removeprefix(prefix).split('.')[0] for key in missing} == {'bridges'}
        else:
            load_state_dict(target, source.state_dict(), strict=False)
        for key, value in plain.state_dict().items():
            assert_close(model.backbone.state_dict()[key], value, rtol=0, atol=0)


@contract
def test_own_checkpoint_round_trips_strictly(name):
    model, other = build(name), build(name)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for key, value in other.state_dict().items():
        assert_close(value, model.state_dict()[key], rtol=0, atol=0)


@contract
def test_every_parameter_gets_a_gradient(name, image):
    model = build(name, block=dict(type='RKANBlock', shortcut=True), fusion=dict(type='Gating'))
    sum(out.square().mean() for out in flat(model(image))).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None and 'backbone.' not in key] == []
    assert [key for key, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@contract
def test_deepcopy_and_pickle_are_independent(name, image):
    model = build(name).eval()
    expected = flat(model(image))[-1]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(flat(other(image))[-1], expected)
        for parameter in other.bridges.parameters():
            nn.init.zeros_(parameter)
        assert not torch.allclose(flat(other(image))[-1], expected)
        assert_close(flat(model(image))[-1], expected)


@contract
def test_measuring_leaves_no_trace(name):
    torch.manual_seed(5)
    model = build(name)
    modes = {module.training for module in model.backbone.modules()}
    assert modes == {True}
    for key, value in model.backbone.state_dict().items():
        if key.endswith('num_batches_tracked'):
            assert value == 0


def test_norm_eval_and_frozen_stages_stay_inside(image):
    cfg = dict(type='mmdet.ResNet', depth=18, norm_eval=True, frozen_stages=4, **NARROW)
    model = RKANet(cfg, ('layer1', 'layer4'))
    model.train()
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.training for m in model.bridges.modules())
    assert not any(p.requires_grad for p in model.backbone.layer4.parameters())
    assert all(p.requires_grad for p in model.bridges.parameters())


def test_init_cfg_of_the_backbone_stays_inside():
    cfg = dict(type='mmdet.ResNet', depth=18, init_cfg=dict(type='Constant', layer=['Conv2d', 'BatchNorm2d'], val=0.5),
               **NARROW)
    model = RKANet(cfg)
    model.init_weights()
    assert (model.backbone.conv1.weight == 0.5).all()
    assert not (model.bridges['layer4'].block.reduce.weight == 0.5).any()


@pytest.mark.parametrize('registry_type', ['rkan_mm.RKANet', 'RKANet'])
@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_type_and_inner_type_resolve_in_the_default_scope(registry_type, scope):
    init_default_scope(scope)
    model = MMENGINE_MODELS.build(dict(type=registry_type, backbone=dict(type='ResNet', depth=18, **NARROW)))
    assert type(model.backbone).__module__.startswith(scope)


def test_overrides_a_stage_and_switches_one_off():
    model = RKANet(dict(type='mmdet.ResNet', depth=18, **NARROW),
                   stages=dict(layer2=None, layer3=dict(reduction=4, fusion=dict(type='SE')), layer4=dict()))
    assert list(model.bridges) == ['layer3', 'layer4']
    assert model.bridges['layer3'].block.reduce.out_channels == 4
    assert type(model.bridges['layer3'].fusion).__name__ == 'SEFusion'
    assert type(model.bridges['layer4'].fusion).__name__ == 'Addition'


@pytest.mark.parametrize(('stage', 'message'), [
    ('stage4', "RKANet: no stage 'stage4' in ResNet; it has conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4"),
    ('layer4.7', "RKANet: no stage 'layer4.7' in ResNet; it has layer4.0, layer4.1"),
    ('layer3:layer5', "RKANet: no stage 'layer5' in ResNet"),
    ('', "RKANet: no stage '' in ResNet"),
])
def test_unknown_stage(stage, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RKANet(dict(type='mmdet.ResNet', depth=18, **NARROW), (stage,))


def test_stage_without_feature_maps():
    cfg = dict(type='mmpretrain.VisionTransformer', img_size=64, patch_size=16,
               arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32))
    with pytest.raises(ValueError, match=r"input of stage 'layers.1' of VisionTransformer is of shape \(1, 17, 16\); "
                                         r'an RKAN block needs feature maps \(B, C, H, W\)'):
        RKANet(cfg, ('layers.1',))


def test_stage_that_does_not_run():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1))
    backbone.spare = nn.Conv2d(8, 8, 1)
    backbone.forward = lambda x: backbone[0](x)
    with pytest.raises(ValueError, match="stage 'spare' of Sequential does not run in its forward pass"):
        RKANet(backbone, ('spare',))


def test_odd_maps_name_the_stage_and_the_shapes():
    model = build('mmpretrain-densenet')
    with pytest.raises(ValueError, match=r"RKANet: stage 'stages.0:transitions.0' maps \(1, 8, 19, 19\) to "
                                         r'\(1, 6, 9, 9\), but its RKAN block to \(1, 6, 10, 10\)'):
        model(torch.rand(1, 3, 75, 75))


def test_unknown_block_argument_names_the_stage():
    with pytest.raises(TypeError, match=r"RKANet: stage 'layer4': model RKANBlock with .*'reductoin'"):
        RKANet(dict(type='mmdet.ResNet', depth=18, **NARROW), block=dict(type='RKANBlock', reductoin=2))


def test_backbone_without_a_scope():
    with pytest.raises(ValueError, match=r"RKANet: cannot build backbone 'ResNet50'.*'mmdet.ResNet'"):
        RKANet(dict(type='ResNet50'))


def test_classifier_checkpoint_starts_a_detector(tmp_path):
    backbone = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
    classifier = MMENGINE_MODELS.build(dict(
        type='mmpretrain.ImageClassifier', backbone=dict(type='rkan_mm.RKANet', backbone=backbone),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', in_channels=64, num_classes=5)))
    for parameter in classifier.parameters():
        nn.init.normal_(parameter)
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / 'classifier.pth')
    model = MODELS.build(dict(
        type='RKANet', backbone=dict(type='mmdet.ResNet', depth=18, **NARROW),
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth'), prefix='backbone.')))
    model.init_weights()
    for key, value in classifier.backbone.state_dict().items():
        assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_torchvision_layout_loads():
    import torchvision
    plain = torchvision.models.resnet18(num_classes=7)
    model = RKANet(dict(type='mmdet.ResNet', depth=18))
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == ['fc.weight', 'fc.bias']
    assert {key.split('.')[0] for key in missing} == {'bridges'}


def test_single_channel_images():
    model = RKANet(dict(type='mmpretrain.ResNet', depth=18, in_channels=1, base_channels=8, stem_channels=8))
    assert model(torch.rand(1, 1, 64, 64))[-1].shape == (1, 64, 2, 2)
