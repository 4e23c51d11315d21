"""What a config does to pictures: what goes into the graph, and the words for what does not."""

import json
import sys

import mmcv
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image

from rkan_mm.deploy.errors import UnsupportedModelError
from rkan_mm.deploy.pictures import Normalize, gives_bgr, preparation

PIPELINES = [
    ('mmdet', [dict(type='Resize', scale=(133, 80), keep_ratio=True)]),
    ('mmdet', [dict(type='Resize', scale=(64, 48), keep_ratio=False)]),
    ('mmpretrain', [dict(type='ResizeEdge', scale=60), dict(type='CenterCrop', crop_size=48)]),
    ('mmpretrain', [dict(type='ResizeEdge', scale=60, edge='long', backend='pillow', interpolation='bicubic')]),
    ('mmpretrain', [dict(type='Resize', scale=(50, 30))]),
    ('mmpretrain', [dict(type='NumpyToPIL', to_rgb=True), dict(type='torchvision/Resize', size=40),
                    dict(type='torchvision/CenterCrop', size=(32, 24)), dict(type='PILToNumpy', to_bgr=True)]),
]


@pytest.mark.parametrize(('scope', 'pipeline'), PIPELINES)
@pytest.mark.parametrize('shape', [(70, 100), (101, 70)])
def test_the_bare_script_prepares_pictures_as_mm_does(scope, pipeline, shape, tmp_path):
    path, script = tmp_path / 'picture.png', (ROOT / 'docs/predict_onnx.py').read_text()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)).save(path)
    init_default_scope(scope)
    theirs = Compose([TRANSFORMS.build(step) for step in pipeline])(
        dict(img=mmcv.imread(str(path)), img_shape=shape, ori_shape=shape))['img'][..., ::-1]
    functions = {}
    exec(script.partition('\nmodel, folder')[0], functions)  # what is above the script's main part
    image = Image.open(path)
    for step in json.loads(json.dumps(preparation(pipeline))):
        image = functions['prepared'](image, step)
    assert np.abs(np.array(image).astype(int) - theirs).max() <= 1


def test_steps_that_are_classes():
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import FixScaleResize, PackDetInputs, Resize
    settings = dict(scale=(133, 80), keep_ratio=True)
    steps = [dict(type=LoadImageFromFile), dict(type=Resize, **settings), dict(type=PackDetInputs)]
    assert gives_bgr(steps)
    dumped = [dict(type='mmcv.transforms.LoadImageFromFile'), dict(type='mmdet.datasets.transforms.Resize', **settings)]
    assert preparation(steps) == preparation(dumped) == preparation([dict(type='Resize', **settings)])
    with pytest.raises(UnsupportedModelError, match='has a step FixScaleResize '):
        preparation([dict(type=FixScaleResize, scale=(8, 8))])
    with pytest.raises(UnsupportedModelError, match='has a step own.Resize '):
        preparation([dict(type='own.Resize', **settings)])


@pytest.mark.parametrize('step', [
    dict(type='RandomFlip', prob=0.5), dict(type='Resize', scale=(8, 8), interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=8, auto_pad=True), dict(type='Pad', size_divisor=32)])
def test_a_step_that_no_file_describes(step):
    with pytest.raises(UnsupportedModelError, match=f"has a step {step['type']} "):
        preparation([step])


@pytest.mark.parametrize(('pipeline', 'bgr'), [
    ([dict(type='LoadImageFromFile')], True), ([dict(type='PackInputs')], False),
    ([dict(type='NumpyToPIL', to_rgb=False), dict(type='PILToNumpy', to_bgr=False)], False),
    ([dict(type='LoadImageFromFile'), dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')], False),
    ([dict(type='LoadImageFromFile'), dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy', to_bgr=True)],
     True)])
def test_order_of_colours(pipeline, bgr):
    assert gives_bgr(pipeline) is bgr


@pytest.mark.parametrize('bgr', [True, False])
@pytest.mark.parametrize('swap', [True, False])
@pytest.mark.parametrize('kind', ['mmdet.DetDataPreprocessor', 'mmpretrain.ClsDataPreprocessor'])
def test_normalises_as_the_data_preprocessor(kind, swap, bgr):
    name = 'bgr_to_rgb' if 'Det' in kind else 'to_rgb'
    part = MODELS.build(dict(type=kind, mean=[1., 20., 30.], std=[4., 5., 6.], pad_size_divisor=32, pad_value=3,
                             **{name: swap}))
    rgb = torch.randint(0, 256, (1, 3, 40, 33), dtype=torch.uint8)
    data = dict(inputs=rgb.flip(1) if bgr else rgb) if 'Cls' in kind else dict(
        inputs=[rgb[0].flip(0) if bgr else rgb[0]], data_samples=None)
    normalize = Normalize(part, bgr)
    torch.testing.assert_close(normalize(rgb), part(data)['inputs'])
    blank = torch.tensor(normalize.blank, dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert (normalize(blank) - 3).abs().max() < 0.2


def test_the_bare_script_is_bare():
    lines = (ROOT / 'docs/predict_onnx.py').read_text().splitlines()
    assert len(lines) < 60
    modules = {line.split()[1] for line in lines if line.startswith(('import', 'from'))} - set(sys.stdlib_module_names)
    assert modules == {'numpy', 'onnxruntime', 'PIL'}
