import contextlib
import json
import weakref

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from torch import nn
from torch.testing import assert_close

from rkan_mm.benchmarks import layers, timing
from rkan_mm.benchmarks.cases import CASES, Autograd, Case, Unfolded, linear
from rkan_mm.benchmarks.layers import MODELS, markdown, saved_bytes
from rkan_mm.models import KANConv2d, KANLinear, SharedKANConv2d

SMALL = {
    'shared': Case('shared', (2, 4, 6, 6), lambda: nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False),
                   lambda **_: SharedKANConv2d(3, 1, 1), Unfolded, dict(forward=1.5)),
    'conv': Case('conv', (2, 4, 6, 6), lambda: nn.Conv2d(4, 4, 3, padding=1),
                 lambda **args: KANConv2d(4, 4, 3, padding=1, **args), Autograd, dict(saved=1.1)),
}


@pytest.mark.parametrize('case', [case for cases in CASES.values() for case in cases], ids=lambda case: case.name)
def test_forms_compute_the_same(case):
    ours = case.ours()
    naive = case.naive(ours)
    assert naive is not ours
    if len(case.shape) == 2:
        x = torch.randn(4, case.shape[1])
    else:
        channels = case.shape[1] if case.naive is Autograd else 8
        x = torch.randn(1, channels, 7, 7)
    assert_close(ours(x), naive(x), rtol=1e-4, atol=1e-4)
    if len(case.shape) == 4:
        x = torch.randn(1, *case.shape[1:])
        assert case.rival()(x).shape == ours(x).shape


@pytest.mark.parametrize('basis', [dict(type='Chebyshev', degree=2), dict(type='BSpline', grid_size=4)])
def test_multiplications_are_those_that_mmengine_counts(basis):
    """Constants are none: they are added up before."""
    x = torch.rand(1, 4, 6, 6)
    for layer in (SharedKANConv2d(3, 2, 1, basis=basis), KANLinear(6, 5, basis=basis),
                  KANConv2d(4, 8, 3, padding=1, groups=2, with_base=False, basis=basis)):
        counted = FlopAnalyzer(layer.eval(), x).unsupported_ops_warnings(False).total()
        assert layers.multiplications(layer, layer(x).numel()) == counted > 0


def test_saved_bytes_are_counted():
    x = torch.randn(2, 4, 8, 8)
    assert saved_bytes(nn.Conv2d(4, 4, 3), x.clone()) == x.nbytes
    assert saved_bytes(nn.Sequential(nn.Tanh(), nn.Tanh()), x.clone()) == 2 * x.nbytes


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layers, 'CASES', {name: [case] for name, case in SMALL.items()})
    layers.main(['shared', 'conv', '--rounds', '3', '--device', 'cpu', '--out', str(tmp_path)])
    found = json.loads((tmp_path / 'layers.json').read_text())
    assert [row['case'] for row in found['layers']] == ['shared', 'conv']
    for row in found['layers']:
        for form, values in row['forms'].items():
            assert values['forward_seconds'] > 0
            assert form == 'rival' or values['forward'] > 0
    assert (tmp_path / 'layers.md').read_text().count('\n| conv |') == 1
    assert 'low memory' in capsys.readouterr().out


def test_scaling_is_drawn(tmp_path):
    rows = {name: [(1, 0.1, 0.2), (2, 0.2, 0.4)] for name in ('degree', 'channels', 'pixels')}
    layers.plot(rows, tmp_path / 'scaling.png')
    assert (tmp_path / 'scaling.png').stat().st_size > 10_000


def test_unknown_rows(capsys):
    with pytest.raises(SystemExit):
        layers.main(['speed'])
    assert 'no rows speed; there are shared, conv, linear, shared-gpu, ' in capsys.readouterr().err


def test_readme_has_the_recorded_figures(root):
    """All rows of the benchmark, as recorded, and nothing else."""
    results = json.loads((root / 'docs/logs/benchmark_layers.json').read_text())
    assert [row['case'] for row in results['layers']] == [case.name for cases in CASES.values() for case in cases]
    assert len(results['models']) == len(MODELS) + 1
    readme = (root / 'docs/speed.md').read_text()
    for table in markdown(results).split('\n\n'):
        assert table in readme
    assert results['torch'].partition('+')[0] in readme


def test_linear_cases_differ_in_the_basis_alone():
    assert linear('a', dict(type='RSWAF')).ours().basis_weight.shape == (256, 784, 8)


@pytest.mark.parametrize('compile', [False, True])
def test_forms_of_kernels_are_not_compared_where_there_are_none(compile, monkeypatch):
    """On a GPU; a graph of the compiler has PyTorch's form of these layers, whatever is forced."""
    monkeypatch.setattr(timing.Running, 'place', lambda self, thing: thing)
    monkeypatch.setattr(layers, 'ratios', lambda case, forms, *_: {name: name for name in forms})
    forms = layers.measure(SMALL['conv'], 1, timing.Running('cuda', compile=compile))['forms']
    assert [*forms] == ['ours', 'ours, low memory', *([] if compile else ['fused', 'by planes']), 'naive']


def test_a_captured_step_keeps_what_its_graph_reads(monkeypatch):
    """Nothing else may hold on to its input."""
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', lambda: None)
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph: contextlib.nullcontext())
    x = torch.rand(3)
    read, replay = weakref.ref(x), timing.Replay(lambda x=x: x + 1, 2)
    del x
    assert read() is not None
    assert replay.calls == 2
