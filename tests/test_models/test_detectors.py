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
