"""KAN layers inside of mmpretrain's and mmdet's models, by configs alone."""

import subprocess
import sys

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.model import BaseModule, Sequential
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import init_default_scope
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from rkan_mm.models import KANConv2d, KANConvTranspose2d, KANLinear, RKANBlock, SharedKANConv2d

KAN = dict(type='KANConv2d', basis=dict(type='BSpline', grid_size=3))


def train(model: nn.Module, step, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    losses = []
    for _ in range(steps):
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.tensor(losses).isfinite())
    return losses


def test_classifier():
    init_default_scope('mmpretrain')
    from mmpretrain.structures import DataSample

    model = MMENGINE_MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, conv_cfg=KAN),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='KANLinearClsHead', num_classes=4, in_channels=64, fc_cfg=dict(basis=dict(type='GaussianRBF')))))
    model.init_weights()
    assert type(model.backbone.layer1[0].conv1) is KANConv2d
    assert type(model.head.fc) is KANLinear
    x, samples = torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(i) for i in range(4)]
    losses = train(model, lambda: model(x, samples, mode='loss')['loss'], 8)
    assert losses[-1] < losses[0]
    predicted = model.eval()(x, [DataSample() for _ in range(4)], mode='predict')
    assert predicted[0].pred_score.shape == (4,)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_backbones_take_it_as_conv_cfg(scope):
    backbone = MMENGINE_MODELS.build(dict(
        type=f'{scope}.ResNet', depth=18, base_channels=8, stem_channels=8,
        conv_cfg=dict(type='rkan_mm.KANConv2d', basis=dict(type='Chebyshev'))))
    assert sum(isinstance(module, KANConv2d) for module in backbone.modules()) == 20
    outs = backbone(torch.randn(2, 3, 64, 64))
    sum(out.mean() for out in outs).backward()
    used = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert used == {name for name, _ in backbone.named_parameters()}


def test_detector():
    """Mask R-CNN with KAN convolutions in backbone and FPN and KAN layers in its box head."""
    init_default_scope('mmdet')
    from mmdet.testing import demo_mm_inputs

    cfg = Config.fromfile('configs/_base_/models/mask-rcnn_r18-narrow_fpn.py').model
    cfg.backbone.pop('init_cfg', None)
    cfg.backbone.conv_cfg = KAN
    cfg.neck.conv_cfg = KAN
    linear = dict(type='KANLinear', basis=dict(type='BSpline', grid_size=3))
    cfg.roi_head.bbox_head.update(cls_predictor_cfg=linear, reg_predictor_cfg=linear)
    model = MMENGINE_MODELS.build(cfg)
    model.init_weights()
    assert type(model.backbone.layer1[0].conv1) is KANConv2d
    assert type(model.neck.fpn_convs[0].conv) is KANConv2d
    assert type(model.roi_head.bbox_head.fc_cls) is KANLinear
    batch = demo_mm_inputs(2, image_shapes=[(3, 64, 64)] * 2, num_items=[2, 1], with_mask=True, use_box_type=True)
    data = model.data_preprocessor(batch, True)
    train(model, lambda: model.parse_losses(model(**data, mode='loss'))[0], 2)
    with torch.no_grad():
        assert len(model.eval()(**data, mode='predict')) == 2


def test_a_layer_without_mmdet_and_mmpretrain():
    """What is to be told of KAN layers need not be imported."""
    code = '''import sys
from rkan_mm.models import KANLinear
KANLinear(2, 2)
print({'mmdet', 'mmpretrain'} & set(sys.modules))'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'set()\n'


class Around(BaseModule):
    """Layers in a module of mmengine, as a head has them."""

    def __init__(self, layer: dict, init_cfg: dict) -> None:
        super().__init__(init_cfg)
        self.first, self.second = (MMENGINE_MODELS.build(layer) for _ in range(2))
        self.stacked = Sequential(MMENGINE_MODELS.build(layer))


@pytest.mark.parametrize('init_cfg', [
    lambda kind: dict(type='Normal', layer=kind, std=0.01),
    lambda kind: dict(type='Normal', layer=kind, std=0.01, override=dict(
        type='Normal', name='first', std=0.02, bias_prob=0.01)),
    lambda kind: dict(type='Xavier', layer=[kind], distribution='uniform', bias=2),
    lambda kind: dict(type='Constant', val=3, bias=2, override=[dict(name='second'), dict(name='stacked')]),
], ids=['layer', 'bias_prob', 'xavier', 'override'])
@pytest.mark.parametrize('args', [{}, dict(with_base=False), dict(with_scaler=True, basis=dict(type='RSWAF'))], ids=str)
@pytest.mark.parametrize(('kind', 'shape'), [
    ('Linear', dict(in_features=64, out_features=96)),
    ('Conv2d', dict(in_channels=64, out_channels=96, kernel_size=3))], ids=['linear', 'conv'])
def test_what_an_init_cfg_says_of_weight_and_bias_stays(kind, shape, args, init_cfg):
    """As in an ordinary layer; of the functions it says nothing, and they stay as they were built."""
    torch.manual_seed(0)
    plain = Around(dict(type=getattr(nn, kind), **shape), init_cfg(kind))
    model = Around(dict(type=f'KAN{kind}', **shape, **args), init_cfg(kind))
    names = ('weight', 'bias')
    untouched = 'override' in init_cfg(kind) and 'layer' not in init_cfg(kind)
    before = {name: p.clone() for name, p in model.named_parameters() if not name.endswith(names) or 'basis_' in name}
    for each in (plain, model):
        each.init_weights()
    own = dict(model.named_parameters())
    if 'with_base' not in args:  # of which nothing may be said, as where the bias was 0 and is to be
        assert all(own[name].equal(p) for name, p in before.items() if not (untouched and name.startswith('first')))
    for name, expected in plain.named_parameters():
        if name in own and not (untouched and name.startswith('first')):
            assert_close(own[name].mean(), expected.mean(), rtol=0, atol=8e-3)
            assert_close(own[name].std(), expected.std(), rtol=0.06, atol=1e-6)


@pytest.mark.parametrize('layer', [dict(type='KANLinear', in_features=4, out_features=6), dict(KAN, in_channels=4,
    out_channels=6, kernel_size=3), dict(type=SharedKANConv2d, kernel_size=3)], ids=lambda layer: str(layer['type']))
def test_layers_that_nothing_is_said_of_are_drawn_anew(layer):
    """As they always were: a seed gives the digits of the records."""
    torch.manual_seed(0)
    model = Around(layer, dict(type='Constant', layer='BatchNorm2d', val=1))
    model.init_weights()
    torch.manual_seed(0)
    again = Around(layer, None)
    for each in (again.first, again.second, again.stacked[0]):
        each.reset_parameters()
    assert_close(model.state_dict(), again.state_dict(), rtol=0, atol=0)


class Own(Around):
    def init_weights(self) -> None:
        nn.init.constant_(self.first.weight, 5)
        super().init_weights()


def test_what_a_model_does_itself_stays():
    head = Own(dict(type='KANLinear', in_features=4, out_features=6), None)
    Sequential(head).init_weights()
    assert (head.first.weight == 5).all()
    assert (head.second.weight != 5).all()


def test_a_block_is_drawn_as_it_always_was():
    torch.manual_seed(0)
    block = RKANBlock(8, 8, last=True)
    Sequential(block).init_weights()
    torch.manual_seed(0)
    again = RKANBlock(8, 8, last=True)
    for module in again.modules():
        if module is not again and hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    for kan in (again.kan1, again.kan2):
        kan.reset_parameters()
    assert_close(block.state_dict(), again.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('init', ['efficient_kan', 'fast_kan'])
def test_an_init_of_the_layer_itself_is_nearer(init):
    model = Around(dict(type='KANLinear', in_features=64, out_features=96, init=init),
                   dict(type='Normal', layer='Linear', std=1.0))
    model.init_weights()
    assert 0.9 * 64**-0.5 < model.first.weight.abs().max() <= 64**-0.5


def test_an_init_cfg_reaches_the_kernels_that_channels_share():
    block = RKANBlock(8, 8, init_cfg=dict(type='Constant', layer='SharedKANConv2d', val=7))
    Sequential(block).init_weights()
    assert (block.kan1.weight == 7).all()


def test_an_init_cfg_of_a_box_head_reaches_its_kan_layer():
    init_default_scope('mmdet')
    head = MMENGINE_MODELS.build(dict(type='Shared2FCBBoxHead', in_channels=2, fc_out_channels=64, num_classes=80,
                                      cls_predictor_cfg=dict(type='KANLinear')))
    head.init_weights()
    assert float(head.fc_cls.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not head.fc_cls.bias.any()


BASIS = dict(type='Chebyshev', degree=3)  # and the base branch: 4 planes
SPLINE = dict(type='BSpline', grid_size=5)  # 8 functions and the base branch: 9 planes


@pytest.mark.parametrize(('layer', 'shape', 'macs'), [
    (lambda: KANConv2d(8, 16, 3, padding=1, basis=BASIS), (8, 10, 12), 10 * 12 * 16 * 8 * 9 * 4),
    (lambda: KANConv2d(8, 16, 3, stride=2, padding=1, groups=4, basis=SPLINE), (8, 10, 12), 5 * 6 * 16 * 2 * 9 * 9),
    (lambda: KANConv2d(8, 16, (1, 3), basis=SPLINE, with_base=False), (8, 10, 12), 10 * 10 * 16 * 8 * 3 * 8),
    (lambda: KANConvTranspose2d(8, 4, 2, stride=2, basis=SPLINE), (8, 5, 6), 5 * 6 * 8 * 4 * 4 * 9),
    (lambda: KANLinear(32, 10, basis=SPLINE), (32,), 32 * 10 * 9),
    (lambda: SharedKANConv2d(3, 2, padding=1, basis=BASIS), (16, 14, 14), 16 * 7 * 7 * 9 * 4),
    (lambda: SharedKANConv2d(3, padding=1, basis=dict(type='GaussianRBF', grid_size=3)), (16, 14, 14),
     16 * 14 * 14 * 9 * 4),
], ids=str)
def test_complexity(layer, shape, macs):
    layer = layer()
    found = get_model_complexity_info(layer, shape, show_table=False, show_arch=False)
    assert found['flops'] == macs
    assert found['params'] == sum(p.numel() for p in layer.parameters())
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        layer(torch.rand(1, *shape))
    assert counted.get_total_flops() == 2 * macs
