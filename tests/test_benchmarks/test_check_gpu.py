"""The script for the day there is a GPU, on a CPU."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from rich.console import Console

from rkan_mm.apis.configs import find_config
from rkan_mm.benchmarks import gpu
from rkan_mm.benchmarks.gpu_steps import GOALS, Step, steps
from rkan_mm.preflight import PreflightError

SAY = Console(quiet=True)


@pytest.fixture
def python_steps(monkeypatch):
    """Steps whose arguments are a program, with the file for its results as argument."""
    monkeypatch.setattr(Step, 'command', lambda self, out: [sys.executable, '-c', *self.arguments, str(out)])


def test_a_failing_step_costs_itself_alone(python_steps):
    rows = gpu.run_all([
        Step('fails', ("print('why'); 1 / 0",), 30),
        Step('writes', ("import sys; open(sys.argv[1], 'w').write('[1]')",), 30),
        Step('sleeps', ("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
                        ), 2),
    ], 60, SAY)
    assert [row['state'] for row in rows] == ['failed (1)', 'done', 'ended after 2 s']
    assert 'why' in rows[0]['output']
    assert 'ZeroDivisionError' in rows[0]['output']
    assert rows[1]['results'] == [1]
    assert rows[2]['seconds'] < 10


@pytest.mark.skipif(gpu.PRCTL is None or not Path('/proc/self/stat').is_file(), reason='only Linux ends it so')
def test_a_step_ends_with_the_script(tmp_path):
    """Else it would go on beside what the next call measures."""
    pid = tmp_path / 'pid'
    step = f'import os, time; open({str(pid)!r}, "w").write(f"{{os.getpid()}} "); time.sleep(100)'
    script = subprocess.Popen([sys.executable, '-c', f"""
import sys
from rkan_mm.benchmarks import gpu, gpu_steps
gpu_steps.Step.command = lambda self, out: [sys.executable, '-c', *self.arguments]
gpu.run(gpu_steps.Step('sleeps', ({step!r},), 90), 90, gpu.Path('/nowhere'))"""])
    while not (pid.is_file() and pid.read_text()):
        assert script.poll() is None
        time.sleep(0.1)
    script.kill()
    script.wait()
    stat = Path(f'/proc/{pid.read_text().strip()}/stat')
    end = time.monotonic() + 20
    while stat.is_file() and ') Z' not in stat.read_text():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_was_measured_is_kept_after_each_step(python_steps):
    kept = []
    gpu.run_all([Step('first', ('',), 50), Step('second', ('',), 50)], 60,
                SAY, lambda rows: kept.append([row['name'] for row in rows]))
    assert kept == [['first'], ['first', 'second']]
    row, = gpu.run_all([Step('first', ('print("rkan_mm goes on in plain PyTorch, without ...")',), 50)], 60, SAY)
    assert row['fallbacks'] == ['rkan_mm goes on in plain PyTorch, without ...']


def test_the_time_for_all_is_kept(python_steps):
    start = time.monotonic()
    rows = gpu.run_all([Step('sleeps', ('import time; time.sleep(60)',), 50), Step('late', ('',), 50)], 7, SAY)
    assert [row['state'] for row in rows] == ['ended after 7 s', 'no time left']
    assert time.monotonic() - start < 20


def test_a_step_without_ops(python_steps, monkeypatch):
    monkeypatch.setattr(gpu, 'has_ops', lambda: False)
    row, = gpu.run_all([Step('detector', ('',), 5, needs_ops=True)], 60, SAY)
    assert row['state'] == "needs mmcv's compiled ops"


def test_counts_of_pytest(tmp_path):
    (tmp_path / 'out').write_text(
        '<?xml version="1.0"?><testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'
        '</testsuite></testsuites>')
    assert gpu._read(tmp_path / 'out') == dict(tests=3, failures=1, errors=0, skipped=1, failed=['b'])


def test_goals_look_at_steps_that_there_are():
    class Asked(dict):
        def __missing__(self, name):
            asked.add(name)
            raise KeyError(name)

    asked = set()
    for goal in GOALS:
        with pytest.raises(KeyError):
            goal.found(Asked())
    assert asked <= {step.name for step in steps()}
    assert GOALS[1].is_met(0.96)
    assert not GOALS[1].is_met(0.95)


def test_what_goals_need_comes_first():
    """Who has eight minutes gets all of it: by the records, these steps and the tests before them take 7.4."""
    class Asked(dict):
        def __missing__(self, name):
            needed.add(name)
            return MagicMock()

    needed = set()
    for goal in GOALS:
        with contextlib.suppress(TypeError):  # a mock has no size
            goal.found(Asked())
    assert {'noise: rkan-resnet50_1xb128-100e_in1k beside itself', 'memory by count'} < needed
    measured = [step.name in needed for step in steps() if step.arguments[0] != 'pytest']
    assert measured == sorted(measured, reverse=True)


@pytest.mark.parametrize('record', ['check_gpu_h100.json', 'check_gpu_h200.json'])
def test_limits_leave_room_for_a_slower_machine(record, root):
    """Half as long again as a step took; one that is ended has measured nothing."""
    rows = json.loads((root / 'configs/imagenet/logs' / record).read_text())['steps']
    took = {row['name']: row['seconds'] for row in rows if not row['state'].startswith('ended')}
    assert {step.name for step in steps() if step.seconds < 1.5 * took.get(step.name, 0)} == set()


@pytest.mark.parametrize('dry', [False, True])
def test_steps_name_configs_and_tests_that_there_are(dry):
    for step in steps(dry):
        if step.arguments[0] == 'pytest':
            continue
        if step.arguments[0] != 'benchmark-layers':
            configs = [argument for argument in step.arguments[1:] if 'rkan' in argument]
            assert configs
            for config in configs:
                find_config(config)
    assert all(path.is_file() for step in steps() for path in map(gpu.Path, step.arguments) if path.suffix == '.py')


def test_a_dry_run_asks_nothing_that_a_cpu_cannot():
    """Graphs, the compiler, and half precision in detectors, which mmcv's NMS has not there."""
    for step in steps(dry=True):
        assert not {'--cuda-graph', '--compile', 'fp16', 'cuda'} & {*step.arguments} or step.arguments[0] == 'pytest'
        assert not {'--detector', '--amp'} <= {*step.arguments}


def test_goals_of_a_record():
    ratio = [dict(throughput_ratio=0.97), dict(throughput_ratio=0.7)]
    found = gpu.goals([dict(name='inference', results=ratio), dict(name='training', state='failed (1)')])
    met = {row['measure']: (row['value'], row['met']) for row in found}
    assert list(met.values())[1:5] == [(0.97, True), (None, None), (0.7, False), (None, None)]


def test_dry_run_of_a_step(tmp_path, capsys):
    out = tmp_path / 'out.json'
    out.write_text(json.dumps(dict(steps=[dict(name='inference', state='done', seconds=1)])))
    gpu.main(['shared kernel', '--dry-run', '--out', str(out)])
    record = json.loads(out.read_text())
    assert {row['name']: row['state'] for row in record['steps']} == {'inference': 'done', 'shared kernel': 'done'}
    assert record['machine']['dry_run'] is True
    values = {row['measure']: row['value'] for row in record['goals']}
    assert values['shared kernel 1 / depthwise Conv2d, forward'] > 0
    text = capsys.readouterr().out
    assert 'written to' in text
    assert text.index('shared kernel: done') < text.index('not measured')


@pytest.mark.slow
def test_dry_run_of_all(tmp_path):
    """All but what a CPU cannot have: bandwidth beside a copy, peaks of the GPU's memory."""
    gpu.main(['--dry-run', '--minutes', '15', '--out', str(tmp_path / 'out.json')])
    record = json.loads((tmp_path / 'out.json').read_text())
    assert {row['state'] for row in record['steps']} == {'done'}, record['steps']
    missing = {row['measure'] for row in record['goals'] if row['value'] is None}
    assert missing == {row.measure for row in GOALS if 'bandwidth' in row.measure or 'memory /' in row.measure}


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu(capsys):
    with pytest.raises(SystemExit) as error:
        gpu.main([])
    assert error.value.code == 2
    assert 'finds no GPU; --dry-run shows on a CPU' in capsys.readouterr().err


def test_kernels_are_measured_in_graphs_in_both_memory_formats():
    arguments = {step.name: step.arguments for step in steps()}
    for row in GOALS:
        if row.measure.startswith('shared kernel'):
            step = row.measure.partition(' / ')[0].partition(', bandwidth')[0].rpartition(' ')[0]
            assert '--cuda-graph' in arguments[step]
            assert ('--channels-last' in arguments[step]) == ('channels_last' in row.measure)


def test_the_revision_may_be_told(monkeypatch):
    monkeypatch.setattr(gpu, 'ROOT', gpu.Path('/nowhere'))
    monkeypatch.setenv('RKAN_MM_REVISION', 'abc')
    assert gpu.machine(True)['revision'] == 'abc'


def test_unknown_step(capsys):
    with pytest.raises(SystemExit):
        gpu.main(['speed', '--dry-run'])
    assert 'no step speed; there are tests of the kernels, inference' in capsys.readouterr().err


@pytest.mark.parametrize(('before', 'dry', 'expected'), [
    (dict(card='H200', dry_run=False), False, ['training']),
    (dict(card='H100', dry_run=False), False, 'on H100 with torch 2.11, this is H200 with torch 2.11: name '),
    (dict(card='H200', dry_run=False, torch='2.9'), False, 'on H200 with torch 2.9, this is H200 with torch 2.11:'),
    (dict(card='no GPU', dry_run=True), False, []),  # its numbers mean nothing
    (dict(card='H200', dry_run=False), True, 'has what was measured on H200 with torch 2.11, this is a dry run: name '),
    (dict(card='H200', dry_run=True), True, ['training']),
    ('torn', False, 'is no record of this command, or torn: name another file by --out'),
    ([], False, 'is no record of this command, or torn'),
])
def test_what_another_call_has_measured(tmp_path, before, dry, expected):
    record = dict(machine=before, steps=[dict(name='training')]) if isinstance(before, dict) else before
    (tmp_path / 'out.json').write_text(before if before == 'torn' else json.dumps(record))
    mine = dict(card='H200', dry_run=dry, torch='2.11')
    if isinstance(expected, str):
        with pytest.raises(PreflightError, match=expected):
            gpu.steps_before(tmp_path / 'out.json', mine)
    else:
        assert [row['name'] for row in gpu.steps_before(tmp_path / 'out.json', mine)] == expected


def test_what_was_measured_stays_until_it_is_measured_anew(tmp_path, monkeypatch):
    """A call that is stopped, or has no time left, takes nothing away; each step keeps its revision."""
    out, run = tmp_path / 'out.json', dict(command='rkan_mm', state='done', seconds=1)
    names = ['inference', 'training', 'convolutions', 'one image']
    out.write_text(json.dumps(dict(note='by hand', machine=gpu.machine(True) | dict(revision='old'), steps=[
        dict(run, name=name, results=[0]) for name in names])))
    monkeypatch.setenv('RKAN_MM_REVISION', 'new')

    def run_all(chosen, seconds, say, keep):
        keep([dict(run, name=names[0], results=[1])])
        between.append(json.loads(out.read_text())['steps'])
        rows = [dict(run, name=names[0], results=[1]), dict(name=names[1], state='no time left', seconds=0),
                dict(run, name=names[3], state='ended after 6 s', results=None)]
        keep(rows)
        return rows

    between = []
    monkeypatch.setattr(gpu, 'run_all', run_all)
    with pytest.raises(SystemExit):  # a step was ended
        gpu.main(['inference', 'training', 'one image', '--dry-run', '--out', str(out)])
    for rows in (*between, json.loads(out.read_text())['steps']):
        assert {row['name']: (row['results'], row['revision']) for row in rows} == {
            names[0]: ([1], 'new'), **dict.fromkeys(names[1:], ([0], 'old'))}
    assert json.loads(out.read_text())['note'] == 'by hand'


def test_a_revision_says_whether_files_differ_from_it(monkeypatch):
    monkeypatch.delenv('RKAN_MM_REVISION', raising=False)
    monkeypatch.setattr(gpu, 'commit', lambda: 'abc-dirty')
    assert gpu.machine(True)['revision'] == 'abc-dirty'
