"""Mask R-CNNs on RKAN backbones of five families: they build, train two steps and predict."""

import copy

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope

ALL = (0, 1, 2, 3)
NARROW = dict(depth=50, base_channels=8, stem_channels=8, norm_eval=False)
# family: (backbone config, its stages, channels and strides of its maps). DenseNet's come from behind its transitions.
DETECTORS = {
    'senet': (dict(type='rkan_mm.PluggedBackbone', backbone=dict(type='ResNet', **NARROW),
                   plugins=[dict(cfg=dict(type='rkan_mm.SE'))]), ('layer4',), (32, 64, 128, 256), (4, 8, 16, 32)),
    'resnext': (dict(type='ResNeXt', groups=2, base_width=4, **NARROW), ('layer3', 'layer4'), (32, 64, 128, 256),
                (4, 8, 16, 32)),
    'densenet': (dict(type='mmpretrain.DenseNet', out_indices=ALL,
                      arch=dict(growth_rate=4, depths=[1, 1, 1, 1], init_channels=8)), ('stages.3:transitions.3',),
                 (6, 5, 4, 8), (8, 16, 32, 32)),
    'regnet': (dict(type='rkan_mm.RegNetY', arch='400mf', out_indices=ALL), ('layer4',), (48, 104, 208, 440),
               (4, 8, 16, 32)),
    'res2net': (dict(type='Res2Net', scales=2, base_width=26, **NARROW), ('layer4',), (32, 64, 128, 256),
                (4, 8, 16, 32)),
}


@pytest.mark.parametrize('family', DETECTORS)
def test_builds_trains_and_predicts(family):
    from mmdet.testing import demo_mm_inputs
    backbone, stages, channels, strides = copy.deepcopy(DETECTORS[family])
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/mask-rcnn_r18-narrow_fpn.py').model
    cfg.backbone = dict(type='rkan_mm.RKANet', backbone=backbone, stages=stages)
    cfg.neck.in_channels = list(channels)
    cfg.rpn_head.anchor_generator.strides = list(strides)
    for extractor in (cfg.roi_head.bbox_roi_extractor, cfg.roi_head.mask_roi_extractor):
        extractor.featmap_strides = list(strides)
    init_default_scope('mmdet')
    model = MMENGINE_MODELS.build(cfg)
    model.init_weights()
    model.train()
    assert [out.shape[2:] for out in model.backbone(torch.rand(2, 3, 64, 64))] == [(64 // s, 64 // s) for s in strides]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = copy.deepcopy(model.backbone.bridges.state_dict())
    for _ in range(2):
        inputs = demo_mm_inputs(2, [[3, 96, 64], [3, 64, 96]], num_items=[2, 3], num_classes=80, with_mask=True)
        data = model.data_preprocessor(inputs, True)
        losses, logged = model.parse_losses(model(**data, mode='loss'))
        assert all(value.isfinite() for value in logged.values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.backbone.parameters())
    assert [key for key, value in model.backbone.bridges.state_dict().items() if torch.equal(value, before[key])] == []

    model.eval()
    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80, with_mask=True), False)
    with torch.no_grad():
        results = model(**data, mode='predict')
    assert len(results) == 2
    assert all(len(result.pred_instances.bboxes) == len(result.pred_instances.masks) for result in results)


def test_blocks_on_the_outputs_of_a_neck():
    from mmdet.testing import demo_mm_inputs
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/mask-rcnn_r18-narrow_fpn.py').model
    init_default_scope('mmdet')
    plain = MMENGINE_MODELS.build(cfg)
    plain.init_weights()
    cfg.neck = dict(type='rkan_mm.RKANet', backbone=cfg.neck, block=dict(type='RKANBlock', zero_init_residual=True),
                    stages=[f'fpn_convs.{i}' for i in range(4)])
    model = MMENGINE_MODELS.build(cfg)
    found = model.load_state_dict(plain.state_dict(), strict=False)  # of the plain detector, whole
    assert found.unexpected_keys == []
    assert {key.partition('.block')[0] for key in found.missing_keys} == {
        f'neck.bridges.fpn_convs_{i}' for i in range(4)}
    maps = plain.backbone(torch.rand(2, 3, 100, 68))
    for ours, theirs in zip(model.neck(maps), plain.neck(maps), strict=True):
        torch.testing.assert_close(ours, theirs)

    data = model.data_preprocessor(demo_mm_inputs(2, [[3, 96, 64], [3, 64, 96]], num_classes=80, with_mask=True), True)
    model.parse_losses(model(**data, mode='loss'))[0].backward()
    for bridge in model.neck.bridges.values():  # at a zero start the last norm alone learns at first
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in bridge.parameters())


@pytest.mark.parametrize(('neck', 'stage'), [
    (dict(type='PAFPN', in_channels=[8, 16, 24, 32], out_channels=16, num_outs=5), 'pafpn_convs.2'),
    (dict(type='FPN', in_channels=[8, 16, 24, 32], start_level=1, out_channels=16, num_outs=5), 'fpn_convs.0'),
    (dict(type='FPN', in_channels=[8, 16, 24, 32], start_level=1, add_extra_convs='on_input', out_channels=16,
          num_outs=5), 'fpn_convs.4'),  # which halves one pixel where images have 64
    ([dict(type='FPN', in_channels=[8, 16, 24, 32], out_channels=16, num_outs=5),
      dict(type='BFP', in_channels=16, num_levels=5)], '0.fpn_convs.2'),
    (dict(type='CTResNetNeck', in_channels=16, num_deconv_filters=(8,), num_deconv_kernels=(4,), use_dcn=False),
     'deconv_layers.0'),
    (dict(type='DilatedEncoder', in_channels=16, out_channels=8, block_mid_channels=4, num_residual_blocks=2,
          block_dilations=[2, 4]), 'dilated_encoder_blocks'),
    (dict(type='ChannelMapper', in_channels=[16, 24, 32], out_channels=16, num_outs=3), 'convs.2'),
    (dict(type='YOLOV3Neck', num_scales=3, in_channels=[32, 16, 8], out_channels=[16, 8, 4]), 'detect3'),
    (dict(type='CSPNeXtPAFPN', in_channels=(8, 16, 32), out_channels=16), 'out_convs.2')])
def test_any_neck_of_several_maps_is_measured(neck, stage):
    init_default_scope('mmdet')
    wrapped = MMENGINE_MODELS.build(dict(type='rkan_mm.RKANet', backbone=neck, stages=(stage,)))
    channels = (neck[0] if isinstance(neck, list) else neck)['in_channels']
    channels = [channels] if isinstance(channels, int) else sorted(channels)
    maps = tuple(torch.rand(2, each, 40 >> i, 24 >> i) for i, each in enumerate(channels))
    block = wrapped.bridges[stage.replace('.', '_')].block
    with torch.no_grad():
        with_block, alone = wrapped(maps), [torch.zeros(0)]
        for each in (block, wrapped.backbone.get_submodule(stage)):
            each.register_forward_hook(lambda module, args, out: alone.append(out))
        assert [out.shape for out in wrapped(maps)] == [out.shape for out in with_block]
    assert alone[-2].shape == alone[-1].shape


def test_a_stage_that_enlarges_its_maps():
    init_default_scope('mmdet')
    neck = dict(type='CTResNetNeck', in_channels=16, num_deconv_filters=(8,), num_deconv_kernels=(4,), use_dcn=False)
    with pytest.raises(ValueError, match=r"stage 'deconv_layers' of CTResNetNeck enlarges its maps, \(1, 16, 64, 64\) "
                                         r'to \(1, 8, 128, 128\), and an RKAN block does not. Name modules in it'):
        MMENGINE_MODELS.build(dict(type='rkan_mm.RKANet', backbone=neck, stages=('deconv_layers',)))


def test_a_neck_that_fails_is_told_with_the_maps_that_it_was_given():
    init_default_scope('mmdet')
    neck = dict(type='SSDNeck', in_channels=[8, 16], out_channels=[8, 16, 16], level_strides=[2], level_paddings=[0],
                l2_norm_scale=None)
    with pytest.raises(RuntimeError, match=r'SSDNeck was given maps of zeros \(1, 8, 2, 2\), \(1, 16, 1, 1\), and f'):
        MMENGINE_MODELS.build(
            dict(type='rkan_mm.RKANet', backbone=neck, stages=('extra_layers.0',), input_size=(8, 8)))
