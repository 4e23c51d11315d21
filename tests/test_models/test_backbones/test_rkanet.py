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
WHOLE = ('layer1', 'layer2', 'layer3', 'layer4')


def plugged(kind: str, depth: int = 50, scope: str = 'mmpretrain', stages: tuple = (True,) * 4, **args) -> dict:
    return dict(type='rkan_mm.PluggedBackbone', backbone=dict(type=f'{scope}.ResNet', depth=depth, **NARROW),
                plugins=[dict(cfg=dict(type=f'rkan_mm.{kind}', **args), stages=stages)])


# name: (backbone config, its stages). First the sixteen families of RKAN.
BACKBONES = {
    'resnet': (dict(type='mmdet.ResNet', depth=50, **NARROW), ('layer3', 'layer4')),
    'resnext': (dict(type='mmdet.ResNeXt', depth=50, groups=2, base_width=4, **NARROW), ('layer2', 'layer4')),
    'wide-resnet': (dict(type='mmpretrain.ResNet', depth=50, base_channels=16, expansion=2, stem_channels=8),
                    ('layer4',)),
    'resnet-d': (dict(type='mmdet.ResNetV1d', depth=50, **NARROW), ('layer4',)),
    'resnest': (dict(type='mmpretrain.ResNeSt', depth=50, **NARROW), ('layer3', 'layer4')),
    'res2net': (dict(type='mmdet.Res2Net', depth=50, scales=2, base_width=26, **NARROW), ('layer4',)),
    'ecanet': (plugged('ECA', 18, 'mmdet'), WHOLE),
    'senet': (plugged('SE'), ('layer4',)),
    'gcnet': (plugged('GlobalContext', 18, stages=(False, True, True, True)), ('layer4',)),
    'cbam': (plugged('CBAM'), ('layer4',)),
    'pyramidnet': (dict(type='rkan_mm.PyramidNet', depth=50, alpha=8, stage_blocks=(1, 2, 1, 1), stem_channels=8,
                        out_indices=(0, 1, 2, 3)), WHOLE),
    'regnet': (dict(type='rkan_mm.RegNetY', arch=dict(w0=8, wa=8.0, wm=2.0, group_w=4, depth=5, bot_mul=1.0),
                    strides=(2, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)), ('layer1', 'layer3')),
    'densenet': (dict(type='mmpretrain.DenseNet', out_indices=(0, 1, 2, 3),
                      arch=dict(growth_rate=4, depths=[1, 1, 1, 1], init_channels=8)),
                 ('stages.0:transitions.0', 'stages.3:transitions.3')),
    'sanet': (plugged('ShuffleAttention', groups=2), ('layer4',)),
    'simam': (plugged('SimAM', 18), ('layer4',)),
    'ela': (plugged('ELA'), ('layer4',)),
    # the same in other libraries or forms
    'mmdet-resnet18': (dict(type='mmdet.ResNet', depth=18, **NARROW), ('layer4',)),
    'mmpretrain-resnet34': (dict(type='mmpretrain.ResNet', depth=34, out_indices=(0, 1, 2, 3), **NARROW), WHOLE),
    'mmpretrain-seresnet': (dict(type='mmpretrain.SEResNet', depth=50, base_channels=32, stem_channels=8),
                            ('layer4',)),
    'timm-resnet10t': (dict(type='mmpretrain.TIMMBackbone', model_name='resnet10t', features_only=True),
                       ('timm_model.layer3', 'timm_model.layer4')),
    # beyond the sixteen
    'convnext': (dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
                 ('stages.1', 'stages.3')),
    'convnext-over-downsampling': (
        dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
        ('stages.1:downsample_layers.2', 'stages.3')),
    'swin': (dict(type='mmpretrain.SwinTransformer', arch=dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1] * 4),
                  img_size=64, pad_small_map=True, drop_path_rate=0, out_indices=(0, 1, 2, 3)),
             ('stages.1.blocks.0:stages.1.blocks.1', 'stages.3.blocks.1')),
    'mmdet-swin': (dict(type='mmdet.SwinTransformer', embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1] * 4,
                        pretrain_img_size=64, drop_path_rate=0),
                   ('stages.1.blocks.1', 'stages.3.blocks.0:stages.3.blocks.1')),
    'mobilenet-v3': (dict(type='mmpretrain.MobileNetV3', arch='small', norm_eval=False), ('layer8', 'layer11:layer12')),
    'efficientnet': (dict(type='mmpretrain.EfficientNet', arch='es', drop_path_rate=0),
                     ('layers.3', 'layers.5:layers.6')),
    'vgg': (dict(type='mmpretrain.VGG', depth=11, norm_cfg=dict(type='BN')), ('features.10:features.12',)),
    'torchvision-mobilenet-v2': (dict(type='torchvision.models.mobilenet_v2', num_classes=5, width_mult=0.25),
                                 ('features.14:features.17', 'features.18')),
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
    plain = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES[name][0]))
    assert [m.training for m in model.backbone.modules()] == [m.training for m in plain.modules()]
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
    ('stage4', "RKANet: no stage 'stage4' in ResNet; it has conv1, bn1, relu, maxpool, layer1, layer2, layer3, "
               "layer4. Name one in stages, such as stages=('layer4', )"),
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


HOURGLASS = dict(type='mmdet.HourglassNet', downsample_times=1, num_stacks=2, stage_channels=[8, 8],
                 stage_blocks=[1, 1], feat_channel=8)
TIMM = dict(type='mmpretrain.TIMMBackbone', model_name='resnet10t', features_only=True)


@pytest.mark.parametrize(('cfg', 'wrong', 'there', 'right'), [
    (HOURGLASS, 'layer4', 'stem, hourglass_modu', 'hourglass_modules.1'),
    (TIMM, 'layer4', 'timm_model.conv1, timm_model.bn1, ', 'timm_model.layer4'),
    (TIMM, 'timm_model.blocks.5', 'timm_model.conv1, timm_model.bn1, ', 'timm_model.layer4'),
], ids=['list', 'only child', 'wrong within an only child'])
def test_unknown_stage_of_a_backbone_that_numbers_them_further_in(cfg, wrong, there, right):
    with pytest.raises(ValueError, match=f'no stage {wrong!r} in [A-Za-z]*; it has {there}') as told:
        RKANet(cfg, (wrong,))
    stage = re.search(r"such as stages=\('(.*)', \)", str(told.value))[1]
    assert stage == right
    assert len(RKANet(cfg, (stage,)).bridges) == 1


HRNET = dict(type='mmdet.HRNet', extra={
    f'stage{i}': dict(num_modules=1, num_branches=i, block='BOTTLENECK' if i == 1 else 'BASIC', num_blocks=(1,) * i,
                      num_channels=(4,) * i) for i in (1, 2, 3, 4)})


def test_hrnet_has_maps_inside_its_stages(image):
    model = RKANet(HRNET, ('layer1', 'stage4.0.branches.3'))
    assert [out.shape[1:] for out in model(image)] == [(4, size, size) for size in (16, 8, 4, 2)]
    assert model.bridges['layer1'].block.expand.out_channels == 16


@pytest.mark.parametrize(('cfg', 'stage', 'message'), [
    (dict(type='mmpretrain.SwinTransformer', arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])),
     'stages.3', r"output of stage 'stages.3' of SwinTransformer is tuple"),
    (HRNET, 'stage4', "input of stage 'stage4' of HRNet is list"),
], ids=['swin', 'hrnet'])
def test_stages_of_tokens_or_of_several_maps(cfg, stage, message):
    with pytest.raises(ValueError, match=message + r'; an RKAN block needs feature maps \(B, C, H, W\)'):
        RKANet(cfg, (stage,), input_size=224)


def test_stage_that_does_not_run():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 1))
    backbone.spare = nn.Conv2d(8, 8, 1)
    backbone.forward = lambda x: backbone[0](x)
    with pytest.raises(ValueError, match="stage 'spare' of Sequential does not run in its forward pass"):
        RKANet(backbone, ('spare',))


def test_where_pooling_rounds_odd_maps_down_the_residual_is_cropped():
    model = build('densenet', block=dict(type='RKANBlock', zero_init_residual=True)).eval()
    plain = MMENGINE_MODELS.build(copy.deepcopy(BACKBONES['densenet'][0]))
    plain.load_state_dict(model.backbone.state_dict())
    plain.eval()
    image = torch.rand(1, 3, 75, 80)  # the first stage maps 19 x 20 to 9 x 10
    assert_close(model(image), plain(image))
    bridge = model.bridges['stages_0-transitions_0']
    x, residuals = torch.rand(1, 8, 19, 20), []
    nn.init.ones_(bridge.block.norm2.weight)
    bridge.block.register_forward_hook(lambda module, args, out: residuals.append(out))
    out = bridge.fuse(x, torch.zeros(1, 6, 9, 10))
    assert residuals[0].shape == (1, 6, 10, 10)
    assert_close(out, residuals[0][:, :, :9])


def test_sizes_beyond_rounding_name_the_stage_and_the_shapes():
    with_small_maps = nn.Sequential(nn.Conv2d(3, 8, 5, 2))
    model = RKANet(with_small_maps, ('0',))
    with pytest.raises(ValueError, match=r"RKANet: stage '0' maps \(1, 3, 64, 64\) to \(1, 8, 30, 30\), but its RKAN "
                                         r'block to \(1, 8, 32, 32\)'):
        model(torch.rand(1, 3, 64, 64))


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
    plugged = dict(type='rkan_mm.PluggedBackbone', backbone=dict(type='mmpretrain.ResNet', depth=18, in_channels=1))
    assert RKANet(plugged, ())(torch.rand(1, 1, 64, 64))[-1].shape == (1, 512, 2, 2)
