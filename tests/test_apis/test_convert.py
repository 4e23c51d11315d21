import subprocess
import sys

import golden
import pytest
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch.testing import assert_close

from rkan_mm.apis.convert import convert_residualkan
from rkan_mm.models import RKANet

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=512))
"""


@pytest.fixture
def source():
    return golden.state_dict('resnet18_default')


def test_command_line(source, tmp_path, root):
    torch.save(dict(state_dict={f'module.{key}': value for key, value in source.items()}), tmp_path / 'src.pth')
    (tmp_path / 'config.py').write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, root / 'tools/convert_checkpoint.py', 'residualkan', tmp_path / 'src.pth',
         tmp_path / 'new' / 'dst.pth', '--config', tmp_path / 'config.py'], capture_output=True, text=True, check=True)
    assert '0 in the model, not in the source' in done.stdout
    assert 'gate_convs.3.weight' in done.stdout  # built by the reference, used by none: said, not dropped in silence
    converted = torch.load(tmp_path / 'new' / 'dst.pth', weights_only=True)['state_dict']
    assert_close(converted['head.fc.weight'], source['resnet.fc.weight'])
    assert_close(converted['backbone.bridges.layer4.block.kan1.weight'][2, 1, 0],
                 source['kan_conv1.3.convs.0.conv.polynomial_weight'][0, 3, 2])


def test_every_key_is_accounted_for(source):
    model = RKANet(dict(type='mmdet.ResNet', depth=18))
    converted, report = convert_residualkan(source, model)
    assert set(report.used) | set(report.unused) == set(source)
    assert set(report.used.values()) == set(converted) == set(model.state_dict())
    assert 'resnet.fc.weight' in report.unused


def test_missing_keys_are_reported(source):
    model = RKANet(dict(type='mmdet.ResNet', depth=18))
    del source['resnet.layer1.0.conv1.weight']
    report = convert_residualkan(source, model)[1]
    assert report.missing == ['backbone.layer1.0.conv1.weight']
    assert 'backbone.layer1.0.conv1.weight' in str(report)


def test_another_architecture_is_named(source):
    model = RKANet(dict(type='mmdet.ResNet', depth=18), block=dict(type='RKANBlock', reduction=4))
    with pytest.raises(ValueError, match=r'kan_bn.3.weight \(128,\) does not fit .*norm1.weight \(64,\)|conv_reduce.3'):
        convert_residualkan(source, model)


def test_a_foreign_checkpoint():
    with pytest.raises(ValueError, match=r'none of the source keys is one of a reference RKANet .* it has a.weight'):
        convert_residualkan({'a.weight': torch.zeros(1)}, RKANet(dict(type='mmdet.ResNet', depth=18)))


def test_a_model_without_rkan(source):
    with pytest.raises(ValueError, match='ResNet has no RKANet'):
        convert_residualkan(source, MMENGINE_MODELS.build(dict(type='mmdet.ResNet', depth=18)))
