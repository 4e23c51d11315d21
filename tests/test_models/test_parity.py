"""Whole RKANets equal the reference: logits, train-mode logits, gradient norms, parameter counts."""

import golden
import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch.testing import assert_close

from rkan_mm.apis.convert import convert_residualkan

FUSIONS = dict(addition='Addition', gating='Gating', se='SE')
POLYNOMIALS = ('chebyshev', 'legendre', 'jacobi', 'hermite')


def config(kwargs: dict, scope: str = 'mmpretrain', num_classes: int = 10) -> dict:
    """A classifier config of ours from the reference's constructor arguments."""
    depth = int(kwargs['version'].removeprefix('resnet'))
    degrees = kwargs.get('spline_order', (3, 2))
    reductions = kwargs.get('reduce_factor', (2, 2, 2, 2))
    block = dict(type='RKANBlock', shortcut=kwargs.get('shortcut', False),
                 expansion=kwargs.get('inv_factor', 4) if kwargs.get('inv_bottleneck') else None,
                 basis=dict(type=kwargs.get('kan_type', 'chebyshev').capitalize(), degree=degrees[0]),
                 second_basis=dict(degree=degrees[1]))
    mechanisms = kwargs.get('mechanisms', (None, None, None, 'addition'))
    stages = {f'layer{i + 1}': dict(reduction=reductions[i], fusion=dict(type=FUSIONS[mechanism]))
              for i, mechanism in enumerate(mechanisms) if mechanism}
    backbone = dict(type='rkan_mm.RKANet', stages=stages, block=block,
                    backbone=dict(type=f'{scope}.ResNet', depth=depth, out_indices=(3,), norm_eval=False))
    return dict(type='mmpretrain.ImageClassifier', backbone=backbone,
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=num_classes,
                          in_channels=512 if depth < 50 else 2048))


def polynomial_resnets():
    for case, meta in golden.models()['cases'].items():
        if meta['class_name'] == 'RKANet' and meta['kwargs'].get('kan_type', 'chebyshev') in POLYNOMIALS:
            yield case


@pytest.mark.parametrize('case', list(polynomial_resnets()))
def test_equals_the_reference(case):
    meta = golden.models()['cases'][case]
    model = MMENGINE_MODELS.build(config(meta['kwargs'], 'mmdet' if case == 'resnet50_all' else 'mmpretrain'))
    assert sum(p.numel() for p in model.parameters()) == meta['n_params_active']
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


@pytest.mark.parametrize(('kwargs', 'num_classes', 'params'), [
    (dict(version='resnet50'), 1000, 27_135_115),
    (dict(version='resnet50', inv_bottleneck=True, inv_factor=2), 1000, 31_856_779),
    (dict(version='resnet50', inv_bottleneck=True, inv_factor=4), 1000, 38_152_331),
    (dict(version='resnet50', inv_bottleneck=True, inv_factor=6), 1000, 44_447_883),
    (dict(version='resnet101'), 100, 44_283_143),
    (dict(version='resnet101', mechanisms=(None, None, 'addition', 'addition')), 100, 44_678_973),
    (dict(version='resnet18'), 1000, 11_789_195),
    (dict(version='resnet34'), 1000, 21_897_355),
], ids=str)
def test_published_parameter_counts(kwargs, num_classes, params):
    model = MMENGINE_MODELS.build(config(kwargs, num_classes=num_classes))
    assert sum(p.numel() for p in model.parameters()) == params
