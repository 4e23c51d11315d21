"""One training step and one prediction of every config, at small images."""

import json

import pytest
from config_files import CONFIGS, PATHS
from conftest import ROOT
from mmengine.config import Config

from rkan_mm.benchmarks import steps
from rkan_mm.preflight import PreflightError

QUICK = {'mask-rcnn_rkanet18_fpn_shapes'}


def narrow(cfg: Config) -> None:
    """An eighth of the width of a detector's ResNet or ResNeXt; 32 regions in place of 512; a small DINO."""
    inner = cfg.model.backbone.get('backbone', cfg.model.backbone)
    if cfg.default_scope == 'mmdet' and 'Res' in inner.type and 'base_channels' not in inner:
        inner.update(base_channels=8, stem_channels=8)
        cfg.model.neck.in_channels = [channels // 8 for channels in cfg.model.neck.in_channels]
        if cfg.model.type == 'DINO':
            cfg.model.num_queries = 30
            cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 2
        rcnn = (cfg.model.get('train_cfg') or {}).get('rcnn', [])
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 32


@pytest.mark.parametrize('path', [
    path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in CONFIGS],
    ids=lambda path: path.stem)
def test_a_step_and_a_prediction(path):
    cfg = Config.fromfile(path)
    narrow(cfg)
    size = steps.image_size(cfg) if 'mnist' in path.stem else (64, 96)  # some of their heads have one size
    result = steps.run(cfg, images=2, size=size)  # raises where a loss is not finite
    assert result['loss'] > 0


@pytest.mark.parametrize(('name', 'size'), [
    ('mask-rcnn_rkanet50_fpn_1x_coco', (640, 1066)), ('mask-rcnn_rkanet50_fpn_mmdet-1x_coco', (800, 1333)),
    ('dino-4scale_rkanet50_mmdet-8xb2-12e_coco', (800, 1333)), ('rkan-resnet50_1xb128-100e_in1k', (224, 224)),
    ('rkan-senet101_1xb128-200e_cifar100', (128, 128)), ('mask-rcnn_rkanet18_fpn_shapes', (128, 128)),
    ('cnn-small_1xb32-20e_fmnist', (28, 28)), ('rkan-resnet18_8xb16_cifar10', (32, 32))])
def test_sizes_are_those_of_the_recipes(name, size):
    assert steps.image_size(Config.fromfile(PATHS[name])) == size


def test_a_loss_that_is_not_finite():
    cfg = Config.fromfile(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    cfg.model.roi_head.bbox_head.loss_cls.loss_weight = float('inf')
    with pytest.raises(FloatingPointError, match="shapes.py: .*'loss_cls': inf"):
        steps.run(cfg, images=2, size=(64, 64))


@pytest.mark.slow
def test_command_line(tmp_path, monkeypatch, capsys):
    config = tmp_path / 'tiny.py'
    cfg = Config.fromfile(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    cfg.model.backbone.backbone.update(base_channels=4, stem_channels=4)
    cfg.model.neck.in_channels = [4, 8, 16, 32]
    cfg.dump(config)
    for _ in range(2):  # the second time there is nothing left to measure
        steps.main([str(config), '--out', str(tmp_path / 'out.json')])
    result, = json.loads((tmp_path / 'out.json').read_text())
    assert (result['config'], result['images'], result['size']) == ('tiny', 1, [128, 128])
    assert 100 * 2**20 < result['peak_bytes'] < 4 * 2**30
    assert min(result['train_s'], result['test_s']) >= 0
    assert 'tiny' in capsys.readouterr().out
    with pytest.raises(PreflightError, match="Config 'gone.py' does not exist"):
        steps.main(['gone.py'])


def test_the_readme_has_the_record():
    readme = (ROOT / 'configs/coco/README.md').read_text()
    for row in json.loads((ROOT / 'configs/coco/logs/benchmark_steps.json').read_text()):
        size, peak = ' x '.join(map(str, row['size'])), row['peak_bytes'] / 2**20
        assert f'| {row["config"]} | {size} | {row["train_s"]} | {row["test_s"]} | {peak:.0f} |' in readme


def test_what_is_measured_again(tmp_path, monkeypatch):
    name, out = 'mask-rcnn_rkanet18_fpn_shapes', tmp_path / 'out.json'
    monkeypatch.setattr(steps, 'measure', lambda config, images, threads: dict(
        config=name, images=images, size=[1, 1], train_s=1, test_s=1, peak_bytes=images))
    for images in (1, 1, 8):
        steps.main([name, '--images', str(images), '--out', str(out)])
    assert [result['images'] for result in json.loads(out.read_text())] == [1, 8]
    changed = tmp_path / f'{name}.py'  # it was shown with the figures of before
    changed.write_text(f"_base_ = 'rkan_mm::{name}.py'\nmodel = dict(neck=dict(num_outs=6))")
    steps.main([str(changed), '--out', str(out)])
    first, second = json.loads(out.read_text())
    assert (first['images'], second['images'], first['state'] == second['state']) == (8, 1, False)
    other = dict(config=name, images=2, size=[1, 1], processor='another', threads=1, torch='2.9')
    out.write_text(json.dumps([other]))
    with pytest.raises(PreflightError, match='out.json. has what was measured on another, 1 threads, torch 2.9, this '):
        steps.main([name, '--out', str(out)])
    out.write_text('[{')
    with pytest.raises(PreflightError, match='out.json. holds no results of this command, or is torn: name another'):
        steps.main([name, '--out', str(out)])


def test_configs_of_any_keys_and_objects():
    """They ended in a TypeError, or were measured again at each call."""
    def state(number):
        return steps._state(Config(dict(keys={1: object(), 'a': {(2, 3): number}}, hook={'b', 'c'})))
    assert state(4) == state(4) != state(5)


@pytest.mark.parametrize(('dataset', 'size'), [
    ("dict(type='ConcatDataset', datasets=[dict(type='CocoDataset', ann_file='a', pipeline=[dict(size=9)])])", (9, 9)),
    ("dict(type='RepeatDataset', times=2, dataset=dict(type='MNIST', data_root='a', pipeline=[]))", (28, 28)),
    ("dict(type='CocoDataset', ann_file='a', pipeline=[])", None),
])
def test_sizes_of_all_kinds_of_data_sets(tmp_path, dataset, size):
    (tmp_path / 'own.py').write_text(f'test_dataloader = dict(dataset={dataset})')
    if size:
        assert steps.image_size(Config.fromfile(tmp_path / 'own.py')) == size
    else:
        with pytest.raises(PreflightError, match='No step of the test pipeline of .*own.py gives a size'):
            steps.main([str(tmp_path / 'own.py')])
