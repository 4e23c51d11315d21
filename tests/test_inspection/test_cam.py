"""Where models look: maps of classifiers and of boxes of four detectors, whose gradients are those of the score."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch.testing import assert_close

from rkan_mm.inspection.cam import BoxTarget, ClassTarget, Scores, activation_map, cam_layer
from rkan_mm.inspection.comparison import plain_boxes
from rkan_mm.inspection.fields import receptive_field, square_with
from rkan_mm.inspection.report.where import show_field
from rkan_mm.inspection.swap import at_rest, without_block
from rkan_mm.models import RKANet

pytest.importorskip('pytorch_grad_cam')

TWO_STAGES = dict(roi_head=dict(bbox_head=dict(fc_out_channels=16)), test_cfg=dict(
    rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=10)))
DETECTORS = {
    'faster-rcnn': ('_base_/models/faster-rcnn_r50_fpn.py', TWO_STAGES),
    'mask-rcnn': ('_base_/models/mask-rcnn_r50_fpn.py', TWO_STAGES),
    'retinanet': ('_base_/models/retinanet_r50_fpn.py', dict(test_cfg=dict(score_thr=0.0, max_per_img=10))),
    'fcos': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', dict(test_cfg=dict(score_thr=0.0, max_per_img=10))),
    'dino': ('dino/dino-4scale_r50_8xb2-12e_coco.py', dict(
        num_queries=20, encoder=dict(num_layers=1), decoder=dict(num_layers=1))),
}


def detector(kind: str):
    init_default_scope('mmdet')
    name, changes = DETECTORS[kind]
    cfg = get_config(f'mmdet::{name}')
    cfg.merge_from_dict(dict(model=changes))
    model = cfg.model
    backbone = dict(model.backbone, depth=18, base_channels=8, stem_channels=8, init_cfg=None, frozen_stages=1)
    outs = backbone.get('out_indices', (0, 1, 2, 3))
    if 'neck' in model:
        model.neck.in_channels = [8 * 2**i for i in outs]
    if 'panoptic_head' in model:
        model.panoptic_head.in_channels = [8 * 2**i for i in outs]
    model.backbone = dict(type='rkan_mm.RKANet', backbone=backbone)
    model = MODELS.build(model)
    model.init_weights()  # until then parameters such as DINO's level_embed are memory that nobody has written
    return model.eval()


def sample(size=(96, 128)) -> list:
    return [DetDataSample(metainfo=dict(img_id=0, img_shape=size, ori_shape=size, batch_input_shape=size,
                                        pad_shape=size, scale_factor=(1.0, 1.0)))]


@pytest.mark.parametrize('kind', DETECTORS)
def test_boxes_of_detectors(kind):
    model = detector(kind)
    x = torch.randn(1, 3, 96, 128)
    data = sample()
    with torch.no_grad():
        found = Scores(model, data)(x)[0]
    assert len(found)
    box, label = found.bboxes[0], found.labels[0].item()
    name, layer = cam_layer(model, lambda: model.backbone(x))
    assert name == 'backbone.backbone.layer4'
    target = BoxTarget(box, label)
    heat = activation_map(model, layer, x, data, target)
    assert heat.shape == (96, 128)
    assert heat.min() >= 0
    # by hand: weights are the mean gradients of the score by the stage's channels
    kept = []
    handle = layer.register_forward_hook(lambda module, args, out: kept.append(out))
    with at_rest(model):
        score = target(Scores(model, data, undetached=kind in ('retinanet', 'fcos'))(x.clone().requires_grad_())[0])
        assert score.item() == pytest.approx(found.scores[0].item(), rel=1e-4)
        (gradient,) = torch.autograd.grad(score, kept[0])
    handle.remove()
    assert gradient.abs().max() > 0
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0].relu().detach().numpy()
    if expected.max() > 0:
        import cv2
        expected = cv2.resize((expected - expected.min()) / (np.ptp(expected) + 1e-7), (128, 96))
        np.testing.assert_allclose(heat, (expected - expected.min()) / (np.ptp(expected) + 1e-7), atol=1e-3)
    (bridge,) = model.backbone.bridges.values()
    with without_block(bridge):
        off = activation_map(model, layer, x, data, None)
    assert off.shape == (96, 128)
    assert not np.allclose(off, activation_map(model, layer, x, data, None))
    assert activation_map(model, layer, x, data, BoxTarget(torch.tensor([900.0, 900, 901, 901]), label)) is None
    assert not layer._forward_hooks or len(layer._forward_hooks) == 1  # the bridge's own
    assert all(parameter.grad is None for parameter in model.parameters())


MASKS = {
    'solo': ('solo/solo_r50_fpn_1x_coco.py', dict(test_cfg=dict(score_thr=0.0, filter_thr=0.0, mask_thr=0.0))),
    'yolact': ('yolact/yolact_r50_1xb8-55e_coco.py', dict(test_cfg=dict(score_thr=0.0))),
    'mask2former': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', dict(
        panoptic_head=dict(num_queries=10), test_cfg=dict(instance_on=True, filter_low_score=False))),
    'rpn': ('rpn/rpn_r50_fpn_1x_coco.py', {}),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', MASKS)
def test_detectors_without_a_head_of_boxes(kind, monkeypatch):
    monkeypatch.setitem(DETECTORS, kind, MASKS[kind])
    model = detector(kind)
    x, data = torch.randn(1, 3, 96, 128), sample()
    with torch.no_grad():
        found = Scores(model, data)(x)[0]
    boxes = plain_boxes(found)
    assert boxes.any()
    layer = model.backbone.backbone.layer4
    maps = [activation_map(model, layer, x, data, BoxTarget(boxes[i], found.labels[i].item())) for i in range(3)]
    assert any(heat is not None and heat.shape == (96, 128) for heat in maps)
    assert activation_map(model, layer, x, data, None).shape == (96, 128)


def classifier(backbone: dict, channels: int):
    from mmpretrain.registry import MODELS as CLASSIFIERS
    init_default_scope('mmpretrain')
    return CLASSIFIERS.build(dict(
        type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=channels))).eval()


def test_classifiers():
    model = classifier(dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18, base_channels=8,
                                                                 stem_channels=8)), 64)
    x = torch.randn(1, 3, 64, 64)
    _, layer = cam_layer(model, lambda: model(x))
    heat = activation_map(model, layer, x, [], ClassTarget(1))
    with torch.no_grad():
        features = model.backbone(x)[-1][0]
    weights = model.head.fc.weight[1].detach()  # of pooled features these are the gradients, as in CAM
    expected = torch.einsum('c,chw->hw', weights, features).relu().numpy()
    small = heat.reshape(2, 32, 2, 32)[:, 16, :, 16]
    assert_close(np.unravel_index(small.argmax(), (2, 2)), np.unravel_index(expected.argmax(), (2, 2)))


def test_tokens_of_swin():
    arch = dict(embed_dims=24, depths=[1, 1, 1, 2], num_heads=[1, 1, 1, 1])
    model = classifier(dict(
        type='rkan_mm.RKANet', stages=('stages.3.blocks.0:stages.3.blocks.1',), input_size=(64, 64),
        backbone=dict(type='SwinTransformer', arch=arch, img_size=64, pad_small_map=True)), 192)
    x = torch.randn(1, 3, 64, 64)
    name, layer = cam_layer(model, lambda: model(x))
    assert name == 'backbone.backbone.stages.3.blocks.1'
    assert activation_map(model, layer, x, [], ClassTarget(0)).shape == (64, 64)
    assert activation_map(model, layer, x, [], None).shape == (64, 64)
    field = receptive_field(model, layer, [x], model.backbone)
    assert field.shape == (63, 63)
    assert field.sum() == pytest.approx(1)


def test_layer_of_nets_without_blocks():
    model = classifier(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), 64)
    x = torch.randn(1, 3, 64, 64)
    assert cam_layer(model, lambda: model(x))[0] == 'backbone.layer4'
    assert cam_layer(model, lambda: model(x), 'backbone.layer2')[1] is model.backbone.layer2
    with pytest.raises(ValueError, match="no module 'layer9' in ImageClassifier; it has data_preprocessor, backbone"):
        cam_layer(model, lambda: model(x), 'layer9')
    linear = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match='no module of Linear gives feature maps'):
        cam_layer(linear, lambda: linear(torch.ones(2)))


def test_last_of_several_stages_with_blocks():
    model = RKANet(dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8, init_cfg=None),
                   stages=('layer4', 'layer2:layer3', 'layer1'))
    assert cam_layer(model, lambda: None)[0] == 'backbone.layer4'


def test_receptive_field_of_a_known_net():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 1, 1, bias=False), torch.nn.Conv2d(4, 2, 5, 1, 2, bias=False))
    field = receptive_field(model, model[1], [torch.randn(1, 3, 31, 33)] * 2, model)
    assert field.shape == (31, 31)
    assert field.sum() == pytest.approx(1)
    rows, columns = field.nonzero()
    assert (rows.min(), rows.max()) == (12, 18)  # 7 x 7 in the middle
    assert (columns.min(), columns.max()) == (12, 18)
    assert square_with(field, 1.0) == 7
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model[1]._forward_hooks
    with pytest.raises(ValueError, match='Flatten gives no feature maps'):
        receptive_field(model, flat := torch.nn.Flatten(), [torch.randn(1, 3, 9, 9)], lambda x: flat(model(x)))


def test_receptive_field_of_a_layer_of_the_neck():
    """The backbone alone was run, and the page said that the layer gives no feature maps."""
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.neck = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1)

        def extract_feat(self, x):
            return self.neck(self.backbone(x))

    def shown(model, layer):
        subject = SimpleNamespace(model=model, samples=[0], batch=lambda sample: dict(inputs=torch.rand(1, 3, 15, 15)))
        page = MagicMock(data={})
        show_field(SimpleNamespace(page=page, subject=subject, say=print, without_blocks=nullcontext), 'it', layer)
        return page

    def refuse(x):
        raise NotImplementedError

    torch.manual_seed(0)
    model = Net()
    assert shown(model, model.neck).data['receptive_field']['with its blocks']['0.9'] == 5
    model.extract_feat = refuse  # as mmpretrain's base class has it
    assert shown(model, model.backbone).data['receptive_field']['with its blocks']['0.9'] == 3
    told = shown(model, model.neck).section().text.call_args.args[0]
    assert told == 'Not looked at: the model has no extract_feat.'


def test_a_layer_that_nothing_depends_on():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.side, self.main, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2)

        def forward(self, x, mode='tensor'):
            self.side(x)
            return self.fc(self.main(x).mean((2, 3)))

    model, x = Net(), torch.randn(1, 3, 16, 16)
    assert activation_map(model, model.side, x, [], ClassTarget(1)) is None
    assert activation_map(model, model.main, x, [], ClassTarget(1)).shape == (16, 16)
    assert not model.side._forward_hooks
