"""Small nets in C, compiled and run beside PyTorch."""

from __future__ import annotations

import itertools
import subprocess

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from torch import nn

from rkan_mm.apis.export import main
from rkan_mm.apis.runner import load_config
from rkan_mm.deploy import files
from rkan_mm.deploy.c import c_source
from rkan_mm.deploy.c.compiled import compiled, compiler
from rkan_mm.deploy.classifier import ClassifierGraph
from rkan_mm.deploy.errors import UnsupportedModelError
from rkan_mm.models import KANConv2d, KANLinear, RKANBlock, SharedKANConv2d
from rkan_mm.models.layers import GroupedKANConv2d
from rkan_mm.models.layers.locked import Fixed, lock
from rkan_mm.preflight import PreflightError
from rkan_mm.registry import BASES

needs_compiler = pytest.mark.skipif(compiler() is None, reason='there is no C compiler (cc)')
CASES = [dict(basis=dict(type=basis)) for basis in sorted(BASES.module_dict)]
CASES += [dict(basis=dict(type='BSpline', order=order)) for order in (1, 2, 7)]
CASES += [dict(basis=dict(type='Wavelet', wavelet='dog'))]
CASES += [dict(normalization=norm) for norm in ('tanh', dict(type='LN'))]
CASES += [dict(with_base=False), dict(with_scaler=True, init='efficient_kan'), dict(base_act_cfg=dict(type='GELU'))]
FAST = [dict(basis=dict(type=basis)) for basis in ('BSpline', 'Chebyshev')]
TINY = ['kan-convnet_1xb128-20e_fmnist', 'kanc-mlp-small-g10_1xb128-19e_fmnist', 'cnn-small_1xb32-20e_fmnist',
        'kanc-mlp-medium-g10_1xb128-19e_fmnist', 'kkan-small-g10_1xb128-12e_fmnist']


def stirred(net: nn.Module) -> nn.Module:
    """With weights, norms and grids as training leaves them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if hasattr(module, 'basis_weight'):
            nn.init.normal_(module.basis_weight, std=0.3 / module.fan_in**0.5)
        if hasattr(module, 'set_interior'):
            points = module.interior()
            module.set_interior((points + torch.linspace(-0.2, 0.2, len(points))[:, None]) * 0.9)
    return net.eval()


def difference(net: nn.Module, images: torch.Tensor, path, double: bool = False) -> float:
    """The largest, between C and PyTorch, relative to the largest result."""
    path = path / 'net.c'
    path.write_text(c_source(net, images[:1]))
    scores, = compiled(path, ('-DREAL=double',) if double else ())(images.numpy())
    with torch.no_grad():
        net, images = (net.double(), images.double()) if double else (net, images)
        expected = net(images).flatten(1).numpy()
    assert np.isfinite(scores).all()
    assert np.abs(expected).max() > 0.01
    return np.abs(scores - expected).max() / max(1, np.abs(expected).max())


@needs_compiler
@pytest.mark.parametrize('layer', [pytest.param(case, id=str(case), marks=[] if case in FAST else pytest.mark.slow)
                                   for case in CASES])
def test_every_basis(layer, tmp_path):
    torch.manual_seed(0)
    conv = {**layer, 'normalization': dict(type='IN')} if layer.get('normalization') == dict(type='LN') else layer
    net = stirred(nn.Sequential(KANConv2d(2, 3, 3, padding=1, **conv), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.Flatten(),
                                KANLinear(27, 5, **layer), nn.LayerNorm(5), KANLinear(5, 3, **layer), nn.Softmax(1)))
    assert difference(net, torch.randn(4, 2, 6, 7), tmp_path) <= 1e-6


@needs_compiler
def test_in_double_precision(tmp_path):
    """Where rounding of what comes in is made larger, by cos(5 z)."""
    torch.manual_seed(0)
    net = stirred(nn.Sequential(KANConv2d(2, 3, 3, basis=dict(type='Wavelet', wavelet='morlet')), nn.Flatten()))
    assert difference(net, torch.randn(4, 2, 6, 7), tmp_path, double=True) <= 1e-6


class Parts(nn.Module):
    """What small nets are made of, beside KAN layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4),
                                  nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), nn.GroupNorm(2, 4), nn.GELU(),
                                  nn.AvgPool2d(3, 2, 1))
        self.right = nn.Sequential(KANConv2d(4, 4, 3, 2, 1, padding_mode='zeros'), nn.Hardswish(),
                                   SharedKANConv2d(3, padding=1), nn.LeakyReLU(0.1))
        self.block = RKANBlock(8, 6, 2, last=True)
        self.act = nn.ModuleList([nn.ELU(), nn.Softplus(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid()])
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.block(x).flip(2)
        x = torch.cat([act(part) for act, part in zip(self.act, x.split(1, 1), strict=True)], 1)
        pooled = nn.functional.adaptive_avg_pool2d(x, 1) + x.amax((2, 3), keepdim=True)
        wide = nn.functional.adaptive_avg_pool2d(x, (3, 1))
        return self.head(torch.cat([pooled, wide], 2).flatten(1)).clamp(-5, 5)


@needs_compiler
def test_what_small_nets_are_made_of(tmp_path):
    torch.manual_seed(0)
    net, images = stirred(Parts()), torch.randn(3, 2, 21, 18)
    assert difference(net, images, tmp_path) <= 1e-6
    assert difference(net, images, tmp_path, double=True) <= 1e-6


@needs_compiler
def test_features_instead_of_pictures(tmp_path):
    net = stirred(nn.Sequential(KANLinear(4, 8), KANLinear(8, 2, basis=dict(type='Rational'))))
    assert difference(net, torch.randn(5, 4), tmp_path) <= 1e-6


@needs_compiler
@pytest.mark.parametrize('name', [TINY[0], TINY[1], *(pytest.param(name, marks=pytest.mark.slow) for name in TINY[2:])])
def test_classifiers_of_our_configs(name, tmp_path):
    """With their normalisation and softmax, as a program that reads a picture, and through the compiler's warnings."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cfg = load_config(name, {})
        model = stirred(MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)))
    graph, path = ClassifierGraph(model), tmp_path / 'of clothes.c'
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    info = dict(task='classification', classes=['T-shirt "/\\top??/', *'bcdefghij'], channels=1, preparation=[],
                config=name)
    files.write(graph, images[:1], path, 'c', info)
    scores, = compiled(path)(images.numpy())
    with torch.no_grad():
        expected, = graph(images)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-6, rtol=0)
    program, picture = tmp_path / 'program', tmp_path / 'picture.pgm'
    subprocess.run([compiler(), '-std=c99', '-Wall', '-Wextra', '-Werror', '-pedantic', '-DOF_CLOTHES_MAIN', str(path),
                    '-o', str(program), '-lm'], check=True)
    picture.write_bytes(b'P5\n# noise\n28 28\n255\n' + images[0].numpy().tobytes())
    printed = subprocess.run([str(program), str(picture)], capture_output=True, text=True, check=True).stdout
    rows = printed.splitlines()
    assert rows[0][2:].startswith('T-shirt "/\\top??/ ')
    np.testing.assert_allclose([float(row.split()[-1]) for row in rows], expected[0].numpy(), atol=2e-6)
    assert [row.startswith('*') for row in rows].index(True) == expected[0].argmax()
    picture.write_bytes(b'P5\n27 28\n255\n' + images[0].numpy().tobytes())
    refused = subprocess.run([str(program), str(picture)], capture_output=True, text=True)
    assert refused.returncode == 2
    assert 'give a binary PGM of 28 x 28 pixels' in refused.stderr


@needs_compiler
def test_the_command_line(trained_small, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'net.c'
    found = main([*trained_small, str(out), '--format', 'c'])
    assert found.agreement == 1
    assert found.difference <= 1e-6
    head = out.read_text()[:1500]
    assert 'int net_predict(const float *image, float *scores)' in head
    assert 'image: 3 x 16 x 16 numbers, 0 to 255, red, green and blue, pictures [{"op": "resize"' in head
    assert '"cat", "dog"' in out.read_text()
    for options in (['--dynamic'], ['--fp16']):
        with pytest.raises(PreflightError, match='--format c is of one size and of float32'):
            main([*trained_small, str(out), '--format', 'c', *options])
    monkeypatch.setattr('rkan_mm.deploy.c.compiled.compiler', lambda: None)
    assert main([*trained_small, str(out), '--format', 'c']) is None
    assert 'not compared with PyTorch: there is no C compiler' in capsys.readouterr().out


@pytest.fixture
def trained_small(tmp_path):
    """Config and checkpoint of a small KAN classifier with random weights."""
    generator = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / f'data/{name}').mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f'data/{name}/0.png')
    config = Config(dict(
        default_scope='mmpretrain',
        model=dict(type='ImageClassifier', data_preprocessor=dict(mean=[100.0, 110.0, 120.0], std=[50.0, 51.0, 52.0]),
                   backbone=dict(type='rkan_mm.ConvNet', in_channels=3, channels=(4,), conv_cfg=dict(type='KANConv2d')),
                   head=dict(type='LinearClsHead', num_classes=2, in_channels=196)),
        test_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='CustomDataset', data_root=str(tmp_path / 'data'), pipeline=[
                dict(type='LoadImageFromFile'), dict(type='Resize', scale=16), dict(type='PackInputs')])),
        test_evaluator=dict(type='Accuracy', topk=1)))
    config.dump(tmp_path / 'net.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('cat', 'dog')))),
               tmp_path / 'net.pth')
    return [str(tmp_path / 'net.py'), str(tmp_path / 'net.pth')]


def with_formulas(layer: nn.Module, *places: tuple[int, ...]) -> nn.Module:
    lock(layer, {place: Fixed(form, (1.0, 0.7, 0.2, 0.3)) for place, form in zip(places, ('sin', 'x^2'), strict=True)})
    return layer


@needs_compiler
@pytest.mark.parametrize('net', [
    lambda: SharedKANConv2d(3, stride=2, padding=1, basis=dict(type='BSpline')),
    lambda: GroupedKANConv2d(4, 2, kernel_size=3, padding=1, basis=dict(type='GaussianRBF')),
    lambda: RKANBlock(4, 6, 2, last=True, basis=dict(type='BSpline'), groups=2),
    lambda: nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (4, 1)), nn.Conv2d(1, 2, 3, bias=True), nn.MaxPool2d(2)),
    lambda: with_formulas(SharedKANConv2d(3, padding=1), (0, 0), (2, 1)),
    lambda: with_formulas(KANConv2d(4, 3, 3, stride=2), (0, 1, 2, 0), (2, 3, 1, 1)),
    lambda: nn.Sequential(nn.Flatten(), with_formulas(KANLinear(4 * 54, 3), (0, 7), (2, 5))),
], ids=['shared', 'grouped', 'block', 'batch', 'formulas-shared', 'formulas-conv', 'formulas-linear'])
def test_kernels_that_channels_share_and_formulas(net, tmp_path):
    torch.manual_seed(0)
    net, x = stirred(net()), torch.randn(1, 4, 6, 9)
    if len(net(x)) == 1:
        assert difference(net, torch.randn(3, 4, 6, 9), tmp_path) <= 1e-6
    else:  # channels are in the place of images
        (tmp_path / 'net.c').write_text(c_source(net, x))
        scores, = compiled(tmp_path / 'net.c')(x.numpy())
        np.testing.assert_allclose(scores[0], net(x).flatten().detach(), atol=1e-6)


class Picking(nn.Module):
    def forward(self, x):
        picked = x[:, [3, 0, -1]].index_select(1, torch.tensor([2, 1]))
        return torch.cat([picked, x.index_copy(1, torch.tensor([1, 4]), picked.sin())], 1)


@needs_compiler
def test_places_that_are_known(tmp_path):
    assert difference(Picking(), torch.randn(4, 6), tmp_path) <= 1e-6


class Rounding(nn.Module):
    def forward(self, x):
        whole = torch.div(x, 0.5, rounding_mode='floor') + torch.div(x, 0.3, rounding_mode='trunc')
        return whole + x.int().float() + x.bool().float() + x // 0.7


@needs_compiler
def test_whole_numbers(tmp_path):
    x = 3 * torch.randn(4, 6)
    x[:, 2] = 0
    assert difference(Rounding(), x, tmp_path) <= 1e-6


class Looking(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, (x.flatten()[:3] > 0).long()]


class Sorting(nn.Module):
    def forward(self, x):
        return x.flatten(1).sort(1).values


@pytest.mark.parametrize(('net', 'match'), [
    (Sorting(), 'The net computes sort, which cannot be written in C'),
    (Looking(), 'An index that is computed, or is no list of places in one dimension, cannot be written in C'),
    (nn.ConvTranspose2d(1, 1, 2), 'A transposed convolution cannot be written in C'),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 1400)), '1,099,000 numbers; a file in C holds 1,000,000'),
])
def test_what_is_refused(net, match):
    with pytest.raises(UnsupportedModelError, match=match):
        c_source(net.eval(), torch.zeros(1, 1, 28, 28))


def test_equal_numbers_are_written_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)).eval()
    net[2].weight = net[0].weight
    assert c_source(net, torch.zeros(1, 3)).count('static const float') == 1


def test_memory_is_used_again():
    """Of a chain, only what a layer reads and writes is kept."""
    chain = itertools.chain.from_iterable((nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(5))
    source = c_source(nn.Sequential(*chain).eval(), torch.zeros(1, 4, 8, 8))
    assert 'working[512]' in source

