import argparse
import json
import math
import re
from unittest.mock import MagicMock

import pytest
import torch
from mmengine.config import Config

from rkan_mm.benchmarks import detectors, steps, timing
from rkan_mm.benchmarks import models as benchmark
from rkan_mm.benchmarks.timing import Running
from rkan_mm.preflight import PreflightError

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, topk=(1,)))
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'tiny.py').write_text(CONFIG)
    return str(tmp_path / 'tiny.py')


@pytest.mark.parametrize('flags', [[], ['--train']])
def test_measures_both_models(config, tmp_path, capsys, flags):
    out = tmp_path / 'out.json'
    argv = ['--shape', '2', '3', '64', '64', '--rounds', '3', '--device', 'cpu', '--out', str(out)]
    benchmark.main([config, *argv, *flags])
    result = json.loads(out.read_text())[0]
    plain, rkan = result['models']['plain'], result['models']['rkan']
    # 8-channel ResNet-18, stage 4: 32 -> 64 channels, 16 in the middle, two KAN convs, two norms
    assert rkan['params'] - plain['params'] == 32 * 16 + 16 * 64 + 2 * (16 + 64) + 54 + 45
    assert rkan['macs'] > plain['macs']
    assert result['throughput_ratio'] > 0
    assert rkan['peak_bytes'] >= 0
    assert 'RKANet' in capsys.readouterr().out


def test_peaks_of_a_process_that_ends_are_nan(config):
    cfg = Config.fromfile(config)
    cfg.model.head.num_classes = 'ten'
    assert math.isnan(benchmark.peak_memory(cfg.model, 'mmpretrain', (1, 3, 64, 64), training=False))


def test_macs_are_those_counted_by_hand(config):
    result = benchmark.measure(config, (1, 3, 64, 64), training=False, rounds=1)
    macs = {name: row['macs'] for name, row in result['models'].items()}
    # stage 4 sees 4x4 and gives 2x2: reduce, base and three powers of KAN conv 1, expand, base and two of KAN conv 2
    pixels = 32 * 16 * 16 + 4 * 16 * 9 * 4 + 16 * 64 * 4 + 3 * 64 * 9 * 4
    norms = 2 * (16 + 64) * 4  # mmengine counts two for each element of a norm, one in eval mode
    assert macs['rkan'] - macs['plain'] in (pixels + norms, pixels + norms // 2)


def test_what_is_measured_of_a_detector_is_told(root, config):
    """Its parameters and images/s stood under the config's name alone, as if they were those of the whole."""
    whole = str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    modes = [benchmark.measure(name, (1, 3, 64, 64), training, 0, memory=False)['mode']
             for name, training in ((whole, True), (whole, False), (config, False))]
    assert modes == ['training step of backbone and neck', 'forward of backbone and neck', 'forward']


def test_steps_take_turns():
    order = []
    times = benchmark.compare({'a': lambda: order.append('a'), 'b': lambda: order.append('b')}, rounds=3)
    assert ''.join(order) == 'ab' * 5
    assert {name: len(values) for name, values in times.items()} == {'a': 3, 'b': 3}


@pytest.mark.parametrize('flags', [['--detector'], ['--detector', '--train', '--shape', '2', '3', '64', '96']])
def test_whole_detectors(root, tmp_path, capsys, flags):
    out = tmp_path / 'out.json'
    benchmark.main([str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), *flags, '--rounds', '1', '--device', 'cpu',
                    '--out', str(out)])
    result = json.loads(out.read_text())[0]
    assert result['shape'] == ([2, 3, 64, 96] if '--train' in flags else [1, 3, 128, 128])
    assert result['mode'] == ('training step of all' if '--train' in flags else 'prediction')
    plain, rkan = result['models'].values()
    assert rkan['params'] > plain['params']
    assert min(plain['images_per_s'], rkan['images_per_s']) > 0
    row, = (line for line in capsys.readouterr().out.splitlines() if 'RKANet' in line)
    assert row.split('│')[-2].strip() == '-'  # what a step takes of a CPU's memory is not measured: it said 0 MiB


def test_ways_of_running(config):
    running = Running(amp='bf16', channels_last=True)
    result = benchmark.measure(config, (2, 3, 64, 64), training=True, rounds=1, running=running, memory=False)
    assert result['running'] == 'bf16 AMP, channels_last'
    row = result['models']['rkan']
    of_the_image = 8 * 3 * 7 * 7 * 32 * 32  # whose gradients nobody computes
    assert row['tflops'] == pytest.approx(2e-12 * (3 * row['macs'] - of_the_image) * row['images_per_s'])
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append((x.is_contiguous(memory_format=torch.channels_last), torch.is_autocast_enabled('cpu')))
            return x

    benchmark.runner_of(Net(), running.place(torch.rand(2, 3, 8, 8)), False, running)()
    assert seen == [(True, True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize(('flags', 'message'), [
    (['--device', 'cuda'], 'finds no GPU'), (['--cuda-graph', '--device', 'cpu'], '--cuda-graph is for a GPU')])
def test_what_a_cpu_does_not_have(config, capsys, flags, message):
    with pytest.raises(SystemExit):
        benchmark.main([config, *flags])
    assert message in capsys.readouterr().err


def test_a_training_step_leaves_no_gradients():
    model = torch.nn.Linear(2, 2)
    benchmark.runner_of(model, torch.rand(1, 2), training=True)()
    assert all(p.grad is None for p in model.parameters())


def test_a_plain_config_has_nothing_beside_it(tmp_path):
    (tmp_path / 'plain.py').write_text("model = dict(backbone=dict(type='ResNet'))")
    with pytest.raises(PreflightError, match='The backbone is ResNet; only a RKANet'):
        benchmark.main([str(tmp_path / 'plain.py')])


def test_the_plain_net_has_no_blocks_on_its_neck(tmp_path):
    """They stayed, and the ratio was that of the backbone's block alone."""
    (tmp_path / 'detector.py').write_text("""
default_scope = 'mmdet'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
neck = dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=4)
resnet = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
model = dict(type='RetinaNet', backbone=dict(type='rkan_mm.RKANet', backbone=resnet), neck=dict(
    type='rkan_mm.RKANet', stages=('fpn_convs.0', 'fpn_convs.1'), backbone=neck))""")
    config = str(tmp_path / 'detector.py')
    models = benchmark.measure(config, (1, 3, 64, 64), False, 0, memory=False)['models']
    assert [row['backbone'] for row in models.values()] == ['ResNet and FPN', 'RKANet and RKANet']
    alone = benchmark.measure(config, (1, 3, 64, 64), False, 0, memory=False, options={
        'model.backbone': dict(type='ResNet', depth=18, base_channels=4, stem_channels=4, _delete_=True)})['models']
    assert [row['backbone'] for row in alone.values()] == ['FPN', 'RKANet']
    assert models['plain'] == alone['plain'] | dict(backbone='ResNet and FPN')
    assert models['plain']['params'] < alone['rkan']['params'] < models['rkan']['params']


def test_beside_another_config(config, tmp_path, capsys):
    other = tmp_path / 'other.py'
    other.write_text("_base_ = './tiny.py'\nmodel = dict(backbone=dict(backbone=dict(depth=34)))")
    out = tmp_path / 'out.json'
    argv = ['--shape', '2', '3', '64', '64', '--rounds', '2', '--device', 'cpu', '--out', str(out)]
    benchmark.main([config, '--baseline', str(other), *argv])
    models = json.loads(out.read_text())[0]['models']
    assert [row['backbone'] for row in models.values()] == ['other', 'tiny']
    assert models['plain']['params'] > models['rkan']['params']
    assert 'other' in capsys.readouterr().out
    with pytest.raises(PreflightError, match="Config 'none.py' does not exist"):
        benchmark.main([config, '--baseline', 'none.py'])


def test_readme_has_the_recorded_ratios_of_convolutional_kans(root):
    page = (root / 'configs/ckan/README.md').read_text()
    for result in json.loads((root / 'configs/ckan/logs/benchmark_ckan.json').read_text()):
        family = re.match('kanc-mlp|kkan|conv-kan', result['config'])[0]
        name = {'kanc-mlp': 'KANC MLP', 'kkan': 'KKAN', 'conv-kan': 'Conv & KAN'}[family]
        size, grid = re.search('(small|medium|big)-g(10|20)', result['config']).groups()
        column = 1 + 2 * ['small', 'medium', 'big'].index(size) + (grid == '20')
        (row,) = re.findall(rf'^\| {name}, a training step \(ours\) .*$', page, re.MULTILINE)
        assert row.split(' | ')[column].strip(' |') == f'{1 / result["throughput_ratio"]:.2f}'


def test_a_graph_holds_so_many_calls_that_its_launch_costs_nothing(monkeypatch):
    """A kernel of 10 us, on a GPU that is not there."""
    calls = []
    monkeypatch.setattr(timing, 'torch', MagicMock())
    monkeypatch.setattr(timing, '_seconds', lambda step, device, calls=1: 1e-5)
    replay = Running('cuda', cuda_graph=True).captured(lambda: calls.append(1))
    assert replay.calls == timing.MOST_CALLS
    assert len(calls) == 3 + 1 + replay.calls
    monkeypatch.setattr(timing, '_seconds', lambda step, device, calls=1: 1.0)
    assert Running('cuda', cuda_graph=True).captured(lambda: None).calls == 1


def test_a_config_that_is_not_there_is_told_before_others_are_measured(config, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'measure', lambda *args, **options: pytest.fail('measured'))
    for argv in ([config, 'none.py'], [config, '--baseline', 'none.py']):
        with pytest.raises(PreflightError, match="Config 'none.py' does not exist"):
            benchmark.main([*argv, '--rounds', '1', '--device', 'cpu', '--out', str(tmp_path / 'out.json')])


PURE = """
from mmpretrain.models import ImageClassifier, GlobalAveragePooling, LinearClsHead, ResNet
from torch.optim import SGD

from rkan_mm.models import RKANet

model = dict(
    type=ImageClassifier,
    backbone=dict(type=RKANet, backbone=dict(type=ResNet, depth=18, base_channels=8, stem_channels=8)),
    neck=dict(type=GlobalAveragePooling), head=dict(type=LinearClsHead, num_classes=10, in_channels=64, topk=(1,)))
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.1))
"""


def test_a_config_in_pure_python_without_a_scope(config, tmp_path):
    """Whose types are classes: it is of the package of its model, and so are its parts."""
    (tmp_path / 'pure.py').write_text(PURE)
    pure, named = (benchmark.measure(str(path), (2, 3, 64, 64), False, 1, memory=path != config)
                   for path in (tmp_path / 'pure.py', config))
    assert {name: row['macs'] for name, row in pure['models'].items()} == {
        name: row['macs'] for name, row in named['models'].items()}
    assert not any(math.isnan(row['peak_bytes']) for row in pure['models'].values())
    assert json.loads(json.dumps(pure))['models']['rkan']['backbone'] == 'RKANet'
    assert steps.run(Config.fromfile(tmp_path / 'pure.py'), 2, (64, 64))['loss'] > 0


def test_the_peak_is_of_the_same_way_as_the_time(config, monkeypatch):
    running = Running(amp='bf16', channels_last=True, compile=True)
    seen = []

    class Process:
        exitcode = 1

        def __init__(self, target, args):
            seen.append(args[-1])

        start = join = lambda self: None

    monkeypatch.setattr(benchmark.multiprocessing, 'get_context', lambda kind: MagicMock(Process=Process))
    benchmark.peak_memory(Config.fromfile(config).model, 'mmpretrain', (1, 3, 64, 64), True, running)
    assert seen == [running._replace(compile=False)]


def test_a_training_step_of_a_detector_on_a_cpu_is_under_amp(monkeypatch):
    seen = []
    monkeypatch.setattr(detectors, 'build_optim_wrapper', lambda model, cfg: None)
    model = MagicMock(train_step=lambda data, wrapper: seen.append(torch.is_autocast_enabled('cpu')))
    for amp in ('bf16', None):
        detectors.step_of(model, Config(dict(optim_wrapper={})), {}, True, Running(amp=amp))()
    assert seen == [True, False]


@pytest.mark.parametrize(('device', 'number'), [('cuda', 0), ('cuda:2', 2), ('mps', None), ('cuda:x', None)])
def test_the_clock_is_that_of_the_gpu_which_is_named(monkeypatch, capsys, device, number):
    chosen, parser = [], argparse.ArgumentParser()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    timing.add_arguments(parser)
    args = parser.parse_args(['--device', device])
    if number is None:
        with pytest.raises(SystemExit):
            timing.running_of(args, parser)
        assert f'--device {device}: ' in capsys.readouterr().err
    else:
        assert timing.running_of(args, parser).device == device
        assert chosen == [number]


def test_what_was_measured_before_a_config_that_fails_is_kept(config, tmp_path, monkeypatch):
    def measure(path, *args, **options):
        if path != config:
            raise PreflightError('no RKANet')
        return dict(config='first')
    monkeypatch.setattr(benchmark, 'measure', measure)
    monkeypatch.setattr(benchmark, 'show', lambda result: None)
    (tmp_path / 'other.py').write_text('')
    with pytest.raises(PreflightError, match='no RKANet'):
        benchmark.main([config, str(tmp_path / 'other.py'), '--device', 'cpu', '--out', str(tmp_path / 'out.json')])
    assert json.loads((tmp_path / 'out.json').read_text()) == [dict(config='first')]
