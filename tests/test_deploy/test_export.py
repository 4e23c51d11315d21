"""The command line of tools/export.py, for classifiers."""

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image

from rkan_mm.apis.export import main
from rkan_mm.deploy import files
from rkan_mm.deploy.departure import departure
from rkan_mm.deploy.errors import UnsupportedModelError
from rkan_mm.deploy.exported import ExportedModel
from rkan_mm.preflight import PreflightError

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[100.0, 110.0, 120.0], std=[50.0, 51.0, 52.0], to_rgb=True),
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='{head}', num_classes=3, in_channels=32))
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='{root}', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=40), dict(type='CenterCrop', crop_size=32),
        dict(type='PackInputs')]))
test_evaluator = dict(type='Accuracy', topk=1)
"""
CLASSES = ('cat', 'dog', 'ship')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Noise in three folders."""
    folder, generator = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for i in range(2):
            small = generator.integers(0, 256, (7, 6, 3), np.uint8)
            Image.fromarray(small.repeat(9, 0).repeat(9, 1)).save(folder / name / f'{name}{i}.png')
    return folder


@pytest.fixture
def trained(data, tmp_path):
    """Config and checkpoint of a classifier with random weights."""
    def make(head='LinearClsHead'):
        config, checkpoint = tmp_path / 'classifier.py', tmp_path / 'net.pth'
        config.write_text(CONFIG.format(head=head, root=data))
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(Config.fromfile(config).model)
        model.head.fc.weight.data.mul_(3)
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), checkpoint)
        return [str(config), str(checkpoint)]
    return make


@pytest.mark.parametrize('options', [
    ['--dynamic'], ['--fp16'], ['--format', 'torchscript', '--dynamic'],
    pytest.param(['--format', 'torchscript', '--fp16'], marks=pytest.mark.slow),
    pytest.param(['--format', 'pt2'], marks=pytest.mark.slow),
    pytest.param(['--format', 'pt2', '--dynamic'], marks=pytest.mark.slow)])  # 32 px: a map of 1 x 1 is inside
def test_the_file_is_the_model(options, trained, tmp_path, capsys):
    form = options[1] if '--format' in options else 'onnx'
    out = tmp_path / f'deep/er/model{files.SUFFIXES[form]}'
    found = main([*trained(), str(out), *options])
    assert found.pictures == 6
    assert found.agreement == 1
    assert found.difference < (2e-2 if '--fp16' in options else 1e-5)
    assert found.metrics['accuracy/top1'][0] == found.metrics['accuracy/top1'][1]
    assert 'Agreement: 100.00 % of the pictures have the same class; scores' in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    _, info = files.read(out, form)
    assert info['classes'] == list(CLASSES)
    assert info['size'] == (None if '--dynamic' in options else [32, 32])
    assert [step['op'] for step in info['preparation']] == ['resize', 'crop']


@pytest.mark.parametrize(('low', 'high'), [(-2.1, 2.6), (0, 1), (0, 4095)])
def test_pictures_that_are_not_of_8_bits(low, high):
    """Normalised or scaled by the pipeline, or of 12 bits: the file would take them for others."""
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromstring(CONFIG.format(head='LinearClsHead', root=''), '.py').model)
    picture = torch.linspace(low, high, 3 * 32 * 32).reshape(3, 32, 32)
    subject = SimpleNamespace(pipeline=[dict(type='LoadImageFromFile')], is_detector=False, model=model,
                              classes=CLASSES, cfg=Config(), samples=[dict(inputs=picture)])
    with pytest.raises(UnsupportedModelError, match=rf'pictures of {low:g} to {high:g}, .* 8 bits, 0 to 255'):
        departure(subject)
    subject.samples[0]['inputs'] = picture.sub(low).mul(255 / (high - low))  # as with to_float32
    assert departure(subject).info['size'] == [32, 32]


def test_runs_without_this_package(trained, data, tmp_path):
    """The bare script, in a process that finds none of torch, mm and ours, predicts what PyTorch does."""
    out, picture = tmp_path / 'model.onnx', data / 'dog/dog0.png'
    main([*trained(), str(out), '--images', str(picture)])
    hide = 'for name in ("torch", "mmcv", "mmengine", "onnx", "cv2", "rkan_mm"): sys.modules[name] = None'
    program = f'import runpy, sys\n{hide}\nsys.argv.pop(0)\nrunpy.run_path(sys.argv[0], run_name="__main__")'

    def run(folder):
        arguments = [str(ROOT / 'docs/predict_onnx.py'), str(out), str(folder), str(picture)]
        return subprocess.run([sys.executable, '-c', program, *arguments], capture_output=True, text=True)
    done = run(tmp_path / 'seen')
    assert not done.returncode, done.stderr
    predicted = json.loads((tmp_path / 'seen/dog0.json').read_text())
    assert done.stdout.split()[1] == CLASSES[predicted[0]['labels']]
    assert sum(one['scores'] for one in predicted) == pytest.approx(1, abs=1e-5)
    assert 'where the pictures are, and they would be overwritten' in run(picture.parent).stderr
    info = {'task': 'classification', 'size': [32, 32], 'blank': [0, 0, 0]}
    with pytest.raises(PreflightError, match='33 x 20 does not fit a file for 32 x 32: export with --dynamic'):
        ExportedModel(lambda image: (), info).pictures([torch.zeros(3, 20, 33)])


@pytest.mark.slow
@pytest.mark.parametrize('form', ['torchscript', 'pt2'])
def test_torch_alone_reads_the_file(form, trained, tmp_path):
    out = tmp_path / f'model{files.SUFFIXES[form]}'
    main([*trained(), str(out), '--format', form])
    load = 'torch.jit.load(path)' if form == 'torchscript' else 'torch.export.load(path).module()'
    program = ('import sys, torch; path = sys.argv[1]; sys.modules["rkan_mm"] = sys.modules["mmcv"] = None; '
               f'print({load}(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0].sum().item())')
    done = subprocess.run([sys.executable, '-c', program, str(out)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1, abs=1e-5)


def test_int8_is_near(trained, data, tmp_path, capsys):
    out, arguments = tmp_path / 'model.onnx', trained()
    found = main([*arguments, str(out), '--int8', str(data / 'cat'), str(data / 'dog'), '--float-parts', 'head'])
    assert 'products compute in 8 bits, calibrated on 4 images' in capsys.readouterr().out
    assert 1e-5 < found.difference < 0.2
    graph = onnx.load(out).graph
    weights = {name: value.data_type for value in graph.initializer for name in [value.name]}
    inputs = {node.op_type: [name for name in node.input if name in weights] for node in graph.node
              if node.op_type in ('Conv', 'Gemm')}
    assert inputs['Gemm'], 'the head remains float'
    assert not inputs['Conv'] or all('bias' in name for name in inputs['Conv'])
    assert onnx.TensorProto.INT8 in weights.values()
    _, info = files.read(out, 'onnx')
    assert info['classes'] == list(CLASSES)
    refused([*arguments, str(out), '--int8', str(data / 'cat'), '--float-parts', '.'], 'Nothing to quantise')
    refused([*arguments, str(out), '--int8', str(data / 'cat'), '--fp16'], '--int8 is of --format onnx, without')


def refused(arguments, match, error=PreflightError):
    with pytest.raises(error, match=match):
        main(arguments)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_its_user_can_mend(trained, tmp_path, monkeypatch):
    config, checkpoint = trained()
    place = tmp_path / 'out'
    place.mkdir()
    refused([config, checkpoint, str(place / 'model.pth')], 'a file of --format onnx ends with .onnx')
    refused([config, checkpoint, str(place / 'a.pt2'), '--format', 'torchscript'], 'ends with .pt\\.')
    (place / 'a.onnx').mkdir()
    refused([config, checkpoint, str(place / 'a.onnx')], 'is a folder')
    (place / 'a.onnx').rmdir()
    refused([config, checkpoint, f'{config}/a.onnx'], 'cannot be written')
    refused([config, str(tmp_path / 'no.pth'), str(place / 'a.onnx')], 'no.pth.* does not exist')
    multi = trained('MultiLabelLinearClsHead')
    refused([*multi, str(place / 'a.onnx')], 'an ImageClassifier whose head predicts as ClsHead', UnsupportedModelError)
    monkeypatch.setattr(files.torch.onnx, 'export', lambda *args, **kwargs: 1 / 0)
    refused([*trained(), str(place / 'a.onnx')], 'ImageClassifier cannot be exported as onnx: division by zero')
    refused([*trained(), str(place / 'new/folder/a.onnx')], 'division by zero')
    monkeypatch.setattr(files.torch.onnx, 'export', no_space)
    refused([*trained(), str(place / 'a.onnx')], 'a.onnx. cannot be written .No space left on device')
    refused([*trained(), str(place / f'{"a" * 300}.onnx')], 'cannot be written .File name too long')
    refused([*trained(), str(place / 'a.onnx'), '--int8', '--opset', '12'], 'of opset 13 or later')
    checkpoint_too = Path(checkpoint).rename(place / 'net.pt')
    refused([config, str(checkpoint_too), str(checkpoint_too), '--format', 'torchscript'], 'is what the model is read')
    assert [path.name for path in place.iterdir()] == ['net.pt']
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    refused([config, checkpoint, str(place / 'a.onnx')], "Exporting needs onnx and onnxruntime: pip install onnx")


@pytest.mark.parametrize(('wrong', 'said'), [
    (lambda out, number: out[:, ::-1].copy(), 'is not written: its probabilities differ'),
    (lambda out, number: out * np.float32(np.nan if number else 1),  # but the first
     'is not written: it gives NaN for some pictures; look whether the model does, too')])
def test_a_file_that_computes_something_else_is_not_kept(trained, tmp_path, monkeypatch, wrong, said):
    read, numbers = files.read, itertools.count()

    def read_wrong(*args):
        function, info = read(*args)

        def run(image):
            number = next(numbers)
            return tuple(wrong(out, number) for out in function(image))
        return run, info
    monkeypatch.setattr(files, 'read', read_wrong)
    refused([*trained(), str(tmp_path / 'out/model.onnx')], said)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('count', 'shift', 'metric', 'scores', 'boxes', 'pixels'), [
    (0, 0, float('nan'), (1.0, 0.0), (0, 2), 0), (2, 0, 0.5, (0.0, 1.0), (2, 2), 0),
    (2, 1.5, 0.5, (0.0, 1.0), (2, 2), 1.5), (2, 9, 0.5, (0.0, 1.0), (0, 2), 0)])
def test_a_file_that_finds_nothing_or_boxes_elsewhere(count, shift, metric, scores, boxes, pixels, monkeypatch, capsys):
    """COCO's evaluator then has no metric at all; boxes elsewhere were told by no figure where there is no metric."""
    from types import SimpleNamespace

    from mmengine.structures import BaseDataElement, InstanceData

    from rkan_mm.apis.export import print_comparison
    from rkan_mm.deploy import comparison

    def found(count, shift=0.0):
        corners = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 0, 5, 9]])  # the last has no area
        corners = corners[:count and count + 1] + torch.tensor([shift, 0, shift, 0])
        return [BaseDataElement(pred_instances=InstanceData(
            bboxes=corners, scores=torch.ones(len(corners)), labels=torch.zeros(len(corners))))]

    model = object()
    monkeypatch.setattr(comparison.files, 'read', lambda path, form: (None, dict(task='detection')))
    monkeypatch.setattr(comparison, 'Metric', lambda subject, number: lambda net: (
        ({'coco/bbox_mAP': 0.5}, found(2)) if net is model else ({'coco/bbox_mAP': 0.5} if count else {},
                                                                 found(count, shift))))
    monkeypatch.setattr(comparison, '_time', lambda *args: (1.0, 1.0))
    result = comparison.compare(SimpleNamespace(model=model), SimpleNamespace(is_bgr=True), 'net.onnx', 'onnx')
    assert result.metrics['coco/bbox_mAP'] == pytest.approx((0.5, metric), nan_ok=True)
    assert (result.difference, result.agreement) == scores
    assert (result.boxes, result.pixels) == (boxes, pixels)
    print_comparison(result, 'net.onnx', 1, 'onnx')
    assert f'Boxes: {boxes[0]} of 2 are in the file, too' in capsys.readouterr().out
