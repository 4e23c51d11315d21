"""Exported files in environments without torch: by the bare script, and by OpenVINO."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from rkan_mm.apis.export import main
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.deploy import files
from rkan_mm.deploy.exported import ExportedModel

pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.slow
TINY = {'model.backbone.backbone.base_channels': 4, 'model.backbone.backbone.stem_channels': 4,
        'model.neck.in_channels': [4, 8, 16, 32], 'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5}


OPENVINO = """
import sys, numpy as np, openvino
given = np.load(sys.argv[2])
run = openvino.Core().compile_model(sys.argv[1], 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
for (name, expected), out in zip([*given.items()][1:], run(given['image']).values(), strict=True):
    np.testing.assert_allclose(out, expected, rtol=0, atol={'boxes': 1e-3}.get(name, 1e-5), err_msg=name)
"""


def new_python(folder, *packages):
    """Of an environment that has these packages alone."""
    subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
    done = subprocess.run([str(folder / 'bin/pip'), 'install', '--quiet', *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'no packages: {done.stderr.strip().splitlines()[-1]}')
    found = subprocess.run([str(folder / 'bin/python'), '-c', 'import torch'], capture_output=True)
    assert found.returncode, 'torch must not be there'
    return str(folder / 'bin/python')


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    return new_python(tmp_path_factory.mktemp('bare'), 'onnxruntime', 'numpy', 'pillow')


def detector(folder, *options):
    """An exported Mask R-CNN of random weights, and pictures."""
    root = make_shapes(folder / 'shapes', 1, 3, size=96)
    cfg, config = Config.fromfile(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), folder / 'shapes.py'
    cfg.merge_from_dict(TINY)
    cfg.dump(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'net.pth')
    pictures, out = sorted((root / 'val').glob('*.png')), folder / 'model.onnx'
    main([str(config), str(folder / 'net.pth'), str(out), *options, '--images', *map(str, pictures)])
    return out, pictures


def test_openvino(tmp_path, tmp_path_factory):
    python = new_python(tmp_path_factory.mktemp('openvino'), 'openvino')
    out, pictures = detector(tmp_path, '--dynamic')
    image = np.stack([np.array(Image.open(path).convert('RGB')).transpose(2, 0, 1) for path in pictures])
    function, info = files.read(out, 'onnx')
    np.savez(tmp_path / 'given.npz', image=image, **dict(zip(info['outputs'], function(image), strict=True)))
    subprocess.run([python, '-c', OPENVINO, str(out), str(tmp_path / 'given.npz')], check=True)


@pytest.mark.parametrize('options', [['--dynamic'], []])
def test_a_detector_of_random_weights(options, python, tmp_path):
    """Its boxes, in pixels of the pictures, are those of the same file by the config's own pipeline."""
    out, pictures = detector(tmp_path, *options)
    script = ROOT / 'docs/predict_onnx.py'
    subprocess.run([python, '-I', str(script), str(out), str(tmp_path / 'seen'), *map(str, pictures)], check=True)
    function, info = files.read(out, 'onnx')
    for path in pictures:
        found = json.loads((tmp_path / f'seen/{path.stem}.json').read_text())
        assert len(found) == 5
        with Image.open(tmp_path / f'seen/{path.stem}.png') as drawn:
            assert drawn.size == (96, 96)
        image = np.array(Image.open(path).convert('RGB').transform(
            (128, 128), Image.Transform.AFFINE, (0.75, 0, 0, 0, 0.75, 0), Image.Resampling.BILINEAR))
        inputs = torch.from_numpy(image.transpose(2, 0, 1).copy())
        array, = ExportedModel(function, info, is_bgr=False).pictures([inputs])
        boxes, labels, scores, masks = (value[0] for value in function(array))
        order = np.argsort(-scores, kind='stable')
        np.testing.assert_allclose([one['scores'] for one in found], scores[order], atol=1e-6)
        np.testing.assert_allclose([one['boxes'] for one in found], boxes[order] * 0.75, atol=1e-3)
        assert [one['labels'] for one in found] == labels[order].tolist()
        np.testing.assert_allclose([one['masks'] for one in found], masks[order], atol=1e-6)
