"""Whole RKANets equal the reference: logits, train-mode logits, gradient norms, parameter counts."""

import re

import golden
import pytest
import torch
from families import BACKBONES, resnest
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn
from torch.testing import assert_close

from rkan_mm.apis.convert import convert_residualkan
from rkan_mm.models import GaussianRBF

# kan_type of the reference: our basis, given its degree and grid
BASES = dict(
    chebyshev=lambda degree, grid: dict(type='Chebyshev', degree=degree),
    legendre=lambda degree, grid: dict(type='Legendre', degree=degree),
    jacobi=lambda degree, grid: dict(type='Jacobi', degree=degree),
    hermite=lambda degree, grid: dict(type='Hermite', degree=degree),
    rbf=lambda degree, grid: dict(type='GaussianRBF', grid_size=grid, grid_range=(-1, 1)),
    b_spline=lambda degree, grid: dict(type='BSpline', grid_size=grid, order=degree),
)
BACKBONE_OF_CASE = dict(  # backbones that are not their version's usual one
    resnet50_all=dict(type='mmdet.ResNet', depth=50, out_indices=(3,), norm_eval=False),
    resnetd50_all=dict(type='mmdet.ResNetV1d', depth=50, out_indices=(3,), norm_eval=False),
    resnest50_avd=resnest(50, avg_down_stride=True),
)
DIFFERENT = dict(  # what no argument of mm's backbones expresses
    resnest50_avdfirst='the reference pools in front of the split attention, mm behind it',
)


def config(class_name: str, kwargs: dict, in_channels: int, num_classes: int = 10,
           backbone: dict | nn.Module | None = None) -> dict:
    """A classifier config of ours from the reference's class, constructor arguments and width of the classifier."""
    bases = [BASES[kwargs.get('kan_type', 'chebyshev')](degree, grid) for degree, grid in zip(
        kwargs.get('spline_order', (3, 2)), kwargs.get('grid_size', (3, 2)), strict=True)]
    reductions = kwargs.get('reduce_factor', (2, 2, 2, 2))
    block = dict(type='RKANBlock', shortcut=kwargs.get('shortcut', False),
                 expansion=kwargs.get('inv_factor', 4) if kwargs.get('inv_bottleneck') else None,
                 basis=bases[0], second_basis=bases[1])
    mechanisms = kwargs.get('mechanisms', (None, None, None, 'addition'))
    fusions = dict(addition=dict(type='Addition'), gating=dict(type='Gating'),
                   se=dict(type='SE', bias=class_name in ('RKANeXt', 'RKAN_WideResNet')))
    stage = 'stages.{0}:transitions.{0}' if class_name == 'RKAN_DenseNet' else 'layer{1}'
    stages = {stage.format(i, i + 1): dict(reduction=reductions[i], fusion=fusions[mechanism])
              for i, mechanism in enumerate(mechanisms) if mechanism}
    backbone = dict(type='rkan_mm.RKANet', stages=stages, block=block,
                    backbone=backbone or BACKBONES[class_name](kwargs['version']))
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone,
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=num_classes, in_channels=in_channels))


def cases():
    for case in golden.models()['cases']:
        if case not in DIFFERENT:
            large = re.search('(34|50|101|169)_', case) and not case.endswith('_all')
            yield pytest.param(case, marks=pytest.mark.slow) if large else case


def classifier_width(meta: dict) -> int:
    """Input channels of the last linear layer in the reference's state_dict."""
    return next(shape[1] for name, shape, _ in reversed(golden.models()['state_dicts'][meta['state_dict']])
                if re.search(r'(^|\.)(fc|classifier)\.weight$', name) and len(shape) == 2)


@pytest.mark.parametrize('case', list(cases()))
def test_equals_the_reference(case, quick_build):
    meta = golden.models()['cases'][case]
    model = MMENGINE_MODELS.build(config(meta['class_name'], meta['kwargs'], classifier_width(meta),
                                         backbone=BACKBONE_OF_CASE.get(case)))
    frozen = sum(module.grid.numel() for module in model.modules() if isinstance(module, GaussianRBF))
    assert sum(p.numel() for p in model.parameters()) + frozen == meta['n_params_active']
    converted, report = convert_residualkan(golden.state_dict(case), model)
    assert report.missing == []
    model.load_state_dict(converted, strict=True)
    model.double().eval()

    x = golden.image(tuple(meta['input_shape'])).double()
    logits = model.head(model.extract_feat(x))
    assert_close(logits, golden.model_array(case, 'logits_f64'), rtol=1e-8, atol=1e-8)

    (logits * golden.logit_gradient()).sum().backward()
    norms = golden.model_array(case, 'grad_l2')
    names = golden.models()['grad_param_lists'][meta['grad_param_names']]
    parameters = dict(model.named_parameters())
    assert {report.used[name] for name in names} == set(parameters)
    ours = torch.stack([parameters[report.used[name]].grad.norm() for name in names])
    assert_close(ours, norms, rtol=1e-8, atol=1e-8)

    model.train()
    with torch.no_grad():
        assert_close(model.head(model.extract_feat(x)), golden.model_array(case, 'train_logits_f64'), rtol=1e-8,
                     atol=1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize('case', ['resnet50_default', 'resnet50_L4'])
def test_equals_the_reference_on_a_gpu(case, quick_build, without_tf32):
    """In single precision."""
    meta = golden.models()['cases'][case]
    model = MMENGINE_MODELS.build(config(meta['class_name'], meta['kwargs'], classifier_width(meta)))
    model.load_state_dict(convert_residualkan(golden.state_dict(case), model)[0], strict=True)
    model.cuda().eval()
    with torch.no_grad():
        logits = model.head(model.extract_feat(golden.image(tuple(meta['input_shape'])).cuda())).double().cpu()
    right = golden.model_array(case, 'logits_f64')
    assert (logits - right).norm() <= 1e-5 * right.norm()


PLAIN, E = (None, None, None, None), (None, None, 'addition', 'addition')


@pytest.mark.parametrize(('class_name', 'version', 'kwargs', 'num_classes', 'params'), [
    ('RKANet', 'resnet18', {}, 1000, 11_789_195),
    ('RKANet', 'resnet34', {}, 1000, 21_897_355),
    ('RKANet', 'resnet50', {}, 1000, 27_135_115),
    ('RKANet', 'resnet50', dict(inv_bottleneck=True, inv_factor=2), 1000, 31_856_779),
    ('RKANet', 'resnet50', dict(inv_bottleneck=True, inv_factor=4), 1000, 38_152_331),
    ('RKANet', 'resnet50', dict(inv_bottleneck=True, inv_factor=6), 1000, 44_447_883),
    ('RKANet', 'resnet101', {}, 100, 44_283_143),
    ('RKANet', 'resnet101', dict(mechanisms=E), 100, 44_678_973),
    ('RKANet', 'resnet101', dict(inv_bottleneck=True, inv_factor=2), 100, 49_004_807),
    ('RKANet', 'resnet101', dict(inv_bottleneck=True, inv_factor=4), 100, 55_300_359),
    ('RKANet', 'resnet101', dict(inv_bottleneck=True, inv_factor=6), 100, 61_595_911),
    ('RKANet', 'resnet152', dict(mechanisms=PLAIN), 100, 58_348_708),
    ('RKANet_D', 'resnetd101', dict(mechanisms=PLAIN), 100, 42_724_292),
    ('RKANeXt', 'resnext101_32x8d', dict(mechanisms=PLAIN), 100, 86_947_236),
    ('RKANeXt', 'resnext101_32x8d', {}, 100, 88_525_319),
    ('RKAN_WideResNet', 'wide_resnet101_2', dict(mechanisms=PLAIN), 100, 125_042_596),
    ('RKANeSt', 'resnest50', {}, 1000, 29_042_091),
    ('RKAN_Res2Net', 'res2net50', {}, 1000, 27_277_203),
    ('RKAN_ECANet', 'ecanet50', {}, 1000, 27_135_201),
    ('RKAN_SENet', 'senet50', dict(mechanisms=PLAIN), 1000, 28_071_976),
    ('RKAN_SENet', 'senet50', {}, 1000, 29_650_059),
    ('RKAN_GCNet', 'gcnet50', {}, 1000, 37_118_091),
    ('RKAN_CBAM', 'cbam50', {}, 1000, 29_651_627),
    ('RKAN_SANet', 'sanet50', {}, 1000, 27_135_823),
    ('RKAN_SimAM', 'simam50', {}, 1000, 27_135_115),
    ('RKAN_ELA', 'ela50', dict(mechanisms=PLAIN), 1000, 26_433_064),
    ('RKAN_ELA', 'ela50', {}, 1000, 28_011_147),
    ('RKAN_PyramidNet', 'pyramidnet200', dict(mechanisms=PLAIN), 100, 44_308_264),
    ('RKAN_PyramidNet', 'pyramidnet200', {}, 1000, 46_806_635),
    ('RKAN_RegNet', 'regnet_y_400mf', {}, 1000, 4_412_723),
    ('RKAN_RegNet', 'regnet_y_800mf', {}, 1000, 6_611_139),
    ('RKAN_RegNet', 'regnet_y_1_6gf', {}, 1000, 11_410_273),
    ('RKAN_RegNet', 'regnet_y_3_2gf', {}, 1000, 20_041_381),
    ('RKAN_RegNet', 'regnet_y_8gf', {}, 1000, 40_691_075),
    ('RKAN_RegNet', 'regnet_y_16gf', {}, 1000, 86_219_215),
    ('RKAN_RegNet', 'regnet_y_32gf', dict(mechanisms=PLAIN), 100, 141_705_070),
    ('RKAN_RegNet', 'regnet_y_32gf', {}, 100, 145_266_369),
    ('RKAN_RegNet', 'regnet_x_3_2gf', {}, 1000, 15_610_139),
    ('RKAN_RegNet', 'regnet_x_8gf', {}, 1000, 40_527_707),
    ('RKAN_DenseNet', 'densenet121', {}, 1000, 8_374_731),
    ('RKAN_DenseNet', 'densenet169', {}, 1000, 14_890_827),
    ('RKAN_DenseNet', 'densenet201', {}, 1000, 21_280_331),
    ('RKAN_DenseNet', 'densenet161', {}, 1000, 30_409_963),
], ids=str)
def test_published_parameter_counts(class_name, version, kwargs, num_classes, params, quick_build):
    backbone = MMENGINE_MODELS.build(BACKBONES[class_name](version))
    backbone.eval()
    channels = backbone(torch.zeros(1, 3, 64, 64))[-1].shape[1]
    model = MMENGINE_MODELS.build(config(class_name, dict(kwargs, version=version), channels, num_classes, backbone))
    assert sum(p.numel() for p in model.parameters()) == params


FIRST, ALL, GATED = ('addition', None, None, None), ('addition',) * 4, (None, None, None, 'gating')


@pytest.mark.parametrize(('class_name', 'version', 'kwargs', 'channels', 'size'), [
    ('RKAN_DenseNet', 'densenet161', dict(mechanisms=FIRST), 2208, 64),
    ('RKAN_DenseNet', 'densenet121', dict(mechanisms=ALL), 1024, 80),
    ('RKAN_DenseNet', 'densenet121', dict(mechanisms=GATED), 1024, 64),
    ('RKANet_D', 'resnetd50', {}, 2048, 80),
    ('RKAN_RegNet', 'regnet_y_400mf', dict(mechanisms=GATED), 440, 64),
    ('RKANeXt', 'resnext50_32x4d', dict(mechanisms=GATED, shortcut=True), 2048, 64),
    ('RKAN_SENet', 'senet50', dict(inv_bottleneck=True), 2048, 64),
    ('RKANet', 'resnet18', dict(mechanisms=(None, None, 'addition')), 512, 64),
], ids=str)
def test_runs_what_the_reference_cannot(class_name, version, kwargs, channels, size):
    model = MMENGINE_MODELS.build(config(class_name, dict(kwargs, version=version), channels))
    model.eval()
    with torch.no_grad():
        logits = model.head(model.extract_feat(golden.image((2, 3, size, size))))
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (dict(backbone=BACKBONES['RKAN_SANet']('sanet18')), ValueError, '64 groups need a multiple of 128 channels'),
    (dict(backbone=BACKBONES['RKANet']('resnet20')), ValueError, 'cannot build backbone .*: invalid depth 20'),
    (dict(backbone=BACKBONES['RKAN_Res2Net']('res2net18')), ValueError, 'invalid depth 18'),
    (dict(fusion=dict(type='film')), ValueError, "stage 'layer4': no fusion 'film'; there are "),
    (dict(block=dict(type='RKANBlock', basis=dict(type='fourier'))), ValueError, "no basis 'fourier'; there are "),
    (dict(block=dict(type='RKANBlock', n_convs=2)), TypeError, "stage 'layer4': model RKANBlock with .*'n_convs'"),
    (dict(block=dict(type='RKANBlock', basis=dict(type='Chebyshev', degree=0))), ValueError, 'degree'),
], ids=['sanet18', 'resnet20', 'res2net18', 'film', 'fourier', 'n_convs', 'degree 0'])
def test_says_what_it_cannot(change, error, message):
    with pytest.raises(error, match=message):
        MMENGINE_MODELS.build(dict(dict(type='rkan_mm.RKANet', backbone=BACKBONES['RKANet']('resnet18')), **change))
