"""Every public function of `rkan_mm.visualization` has an example in its docstring, and the example runs."""

import doctest
from collections import OrderedDict

import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

import rkan_mm.inspection
import rkan_mm.visualization
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.models import KANLinear, RKANBlock, RKANet, SharedKANConv2d


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.kan1, self.fc = SharedKANConv2d(3), KANLinear(3, 4, basis=dict(type='BSpline'))

    def forward(self, x):
        return self.fc(self.kan1(x).mean((2, 3)))


class Runner:
    """What an example takes for mmengine's."""

    class visualizer:
        @staticmethod
        def add_image(name, image):
            assert image.ndim == 3


def of_a_net() -> dict:
    model, images = Net(), torch.rand(2, 3, 9, 9)
    with rkan_mm.inspection.Recorder(model) as recorder:
        model(images)
    return dict(model=model, images=images, recorder=recorder, runner=Runner)


def of_a_detector() -> dict:
    make_shapes('shapes', num_train=1, num_val=2, size=64)
    cfg = Config.fromfile('config.py')
    init_default_scope('mmdet')
    model, shapes = MODELS.build(cfg.model).eval(), DATASETS.build(cfg.val_dataloader.dataset)
    data = pseudo_collate([shapes[0]])
    prepared = model.data_preprocessor(data)
    trained = model.test_step(data)[0]
    box, label = torch.tensor([8.0, 8, 40, 40]), 0
    return dict(model=model, detector=model, shapes=shapes, data=data, layer=model.backbone.backbone.layer4, box=box,
                label=label, trained=trained, images=[prepared['inputs']], x=prepared['inputs'],
                data_samples=prepared['data_samples'], image=data['inputs'][0].permute(1, 2, 0).numpy())


def of_a_backbone() -> dict:
    backbone = RKANet(backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, init_cfg=None))
    return dict(model=nn.Sequential(OrderedDict(backbone=backbone)), images=torch.rand(2, 3, 64, 64))


NAMES = dict(draw_activation_maps=of_a_detector, draw_receptive_fields=of_a_detector, draw_changes=of_a_detector,
             draw_gallery=of_a_detector, draw_branch=of_a_backbone)


@pytest.mark.parametrize('name', rkan_mm.visualization.__all__)
def test_examples_run(name, tmp_path, monkeypatch, root):
    if name == 'draw_activation_maps':
        pytest.importorskip('pytorch_grad_cam')
    config = Config.fromfile(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    config.merge_from_dict({'val_dataloader.dataset.data_root': f'{tmp_path}/shapes/'})
    config.dump(tmp_path / 'config.py')
    monkeypatch.chdir(tmp_path)
    function = getattr(rkan_mm.visualization, name)
    known = {**vars(rkan_mm.inspection), **vars(rkan_mm.visualization), 'torch': torch,
             **NAMES.get(name, of_a_net)()}
    example = doctest.DocTestParser().get_doctest(function.__doc__, known, name, None, 0)
    assert example.examples, f'{name} has no example'
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not said, ''.join(said)


def test_figures_are_matplotlibs():
    known = of_a_net()
    figure = rkan_mm.visualization.draw_functions(known['model'].kan1, known['recorder']['kan1'])
    assert isinstance(figure, Figure)


@pytest.mark.parametrize('function', [
    rkan_mm.inspection.kan_layers, rkan_mm.inspection.LayerFunctions, rkan_mm.inspection.Recorder,
    rkan_mm.inspection.bridges, rkan_mm.inspection.BranchRecorder, rkan_mm.inspection.square_with,
], ids=lambda function: function.__name__)
def test_examples_of_the_inspection(function):
    import numpy as np
    known = dict(vars(rkan_mm.inspection), torch=torch, np=np, RKANet=RKANet, RKANBlock=RKANBlock,
                 SharedKANConv2d=SharedKANConv2d)
    example = doctest.DocTestParser().get_doctest(function.__doc__, known, function.__name__, None, 0)
    assert example.examples
    said = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, ''.join(said)
