"""The command line of tools/export.py with --int8, and what each part costs in 8 bits."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.registry import MODELS, DefaultScope
from mnist import write_mnist

from rkan_mm.apis.export import main
from rkan_mm.apis.runner import load_config
from rkan_mm.deploy import files
from rkan_mm.deploy.errors import UnsupportedModelError
from rkan_mm.deploy.int8 import round_weights
from rkan_mm.inspection.subject import with_pipeline
from rkan_mm.models import KANConv2d
from rkan_mm.preflight import PreflightError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
CONFIG = ROOT / 'configs/ckan/kan-convnet_1xb128-20e_fmnist.py'
INT8, INT16 = onnx.TensorProto.INT8, onnx.TensorProto.INT16


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Arguments for a KANConvNet with random weights, whose data set, of 300 pictures for training, is one file."""
    folder = tmp_path_factory.mktemp('fmnist')
    write_mnist(folder / 'data', sizes=(300, 10), height=28, width=28)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        model = MODELS.build(load_config(str(CONFIG)).model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'net.pth')
    given = ['--eval-images', '4', '--cfg-options', f'data_root={folder}/data/',
             f'kfold.dataset.data_root={folder}/data/',
             *[f'{split}_dataloader.dataset.dataset.dataset.data_root={folder}/data/' for split in ('train', 'val')],
             f'test_dataloader.dataset.dataset.data_root={folder}/data/']
    return lambda out, *options: main([str(CONFIG), str(folder / 'net.pth'), str(out), *options, *given])


def weights(path):
    """Names of the numbers of a file, by their kind."""
    kinds = {}
    for value in onnx.load(path).graph.initializer:
        kinds.setdefault(value.data_type, []).append(value.name)
    return kinds


def test_calibrated_on_the_training_set(trained, tmp_path, capsys):
    """Of which there is no file for each picture to name."""
    found = trained(tmp_path / 'a.onnx', '--int8', '--float-parts', 'head')
    printed = capsys.readouterr().out
    assert '3 convolutions and products compute in 8 bits, calibrated on 200 images' in printed
    assert 'beside the file in float: ' in printed
    assert 1e-7 < found.difference < 0.2
    assert any('head.fc.weight' in name for name in weights(tmp_path / 'a.onnx')[onnx.TensorProto.FLOAT])
    assert files.read(tmp_path / 'a.onnx', 'onnx')[1]['size'] == [28, 28]


@pytest.mark.parametrize(('only', 'kind'), [('weights', INT8), ('activations', INT16)])
def test_one_of_both_in_8_bits(only, kind, trained, tmp_path, capsys):
    trained(tmp_path / 'a.onnx', '--int8', '--int8-only', only)
    assert f'the {only} of 4 convolutions and products compute in 8 bits' in capsys.readouterr().out
    kinds = weights(tmp_path / 'a.onnx')
    assert any('head.fc.weight' in name for name in kinds[kind])
    assert not any('weight' in name and 'zero' not in name and 'scale' not in name for name in kinds.get(
        INT8 + INT16 - kind, []))


def test_rounded_weights(trained, tmp_path, capsys):
    found = trained(tmp_path / 'a.onnx', '--round-weights', 'layers.*basis_weight')
    assert 'rounded to 8 bits: backbone.layers.0.basis_weight, ' in capsys.readouterr().out
    assert 1e-7 < found.difference < 0.2
    with pytest.raises(PreflightError, match='of --int8'):
        trained(tmp_path / 'b.onnx', '--int8-only', 'weights')
    with pytest.raises(UnsupportedModelError, match="'nose' is in none of backbone.layers.0.weight"):
        trained(tmp_path / 'b.onnx', '--round-weights', 'nose')
    assert not (tmp_path / 'b.onnx').exists()


def test_rounding_is_by_output_channel():
    layer = KANConv2d(2, 3, 3)
    with torch.no_grad():
        layer.basis_weight[1] *= 1e3
    before, base = layer.basis_weight.detach().clone(), layer.weight.detach().clone()
    assert round_weights(layer, 'basis_weight') == ['basis_weight']
    assert torch.equal(layer.weight, base)
    for old, new in zip(before, layer.basis_weight, strict=True):
        step = old.abs().max() / 127
        assert 0 < (old - new).abs().max() <= step * 0.501
        assert len(new.unique()) <= 255
        np.testing.assert_allclose((new / step).detach(), (new / step).detach().round(), atol=1e-3)


def test_pipeline_of_wrapped_data_sets():
    inner = dict(type='CustomDataset', pipeline=['augment'])
    mixed = dict(type='MultiImageMixDataset', pipeline=['mosaic'], dataset=inner)
    both = dict(type='ConcatDataset', datasets=[mixed, dict(type='RepeatDataset', times=2, dataset=inner)])
    plain = dict(type='CustomDataset', pipeline=['pack'])
    assert with_pipeline(both, ['pack']) == dict(type='ConcatDataset', datasets=[
        plain, dict(type='RepeatDataset', times=2, dataset=plain)])
    assert inner['pipeline'] == ['augment']
