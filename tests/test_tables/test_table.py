"""Tables of runs: two tiny classifiers over seeds, through the command line."""

import argparse
import csv
import json
import os
import re
import subprocess
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from mmengine.analysis import FlopAnalyzer
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mnist import write_mnist

from rkan_mm.apis.runner import load_config
from rkan_mm.benchmarks.models import build
from rkan_mm.preflight import PreflightError
from rkan_mm.tables import run as table_module
from rkan_mm.tables.report import MARK, markdown, models
from rkan_mm.tables.run import run_table
from rkan_mm.tables.table import FIELDS, LockedError, Table, locked

CONFIG = """
_base_ = '{root}/configs/_base_/ckan_fmnist.py'
model = dict(backbone=dict(channels=(2, 2)), head=dict(in_channels=50))
train_cfg = dict(max_epochs=2)
train_dataloader = dict(batch_size=20)
"""


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    """A folder with a config and data, which need not be a checkout."""
    write_mnist(tmp_path / 'data/fashion_mnist', height=28, width=28)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/tiny.py').write_text(CONFIG.format(root=root))
    rows = [dict(name='plain', config='configs/tiny.py', published=50),
            dict(name='faster, lr 0.1', config='configs/tiny.py', seeds=[3],
                 options={'optim_wrapper.optimizer.lr': 0.1, 'data_fingerprints.train': 'other'})]
    (tmp_path / 'table.yml').write_text(yaml.safe_dump(
        dict(title='Tiny', metric='accuracy/top1', seeds=[0, 1], rows=rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(root))
    return tmp_path


def test_a_table_is_run_once_and_collected(project, root, monkeypatch):
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.delenv(name, raising=False)
    run_table(['table.yml', '--rows', 'plain', '--seeds', '1', '--record', 'out.csv'])
    launched = []
    launch = table_module.launch
    monkeypatch.setattr(table_module, 'launch', lambda *args: (launched.append(args[1:3]), launch(*args)))
    run_table(['table.yml', '--record', 'out.csv', '--jobs', '2'])
    assert sorted(launched) == [('faster, lr 0.1', 3), ('plain', 0)]
    head = ['git', '-C', str(root), 'rev-parse', 'HEAD']
    git_log = subprocess.run(head, capture_output=True, text=True).stdout
    with open('out.csv', newline='') as file:
        lines = list(csv.DictReader(file))
    assert [(line['row'], line['seed']) for line in lines] == [('plain', '0'), ('plain', '1'), ('faster, lr 0.1', '3')]
    for line in lines:
        curve = [float(value) for value in line['curve'].split()]
        assert len(curve) == int(line['epochs']) == 2
        assert float(line['last']) == curve[-1]
        assert float(line['best']) == max(curve)
        assert curve[int(line['best_epoch']) - 1] == max(curve)
        assert float(line['seconds_per_epoch']) > 0
        assert float(line['peak_memory_mib']) > 50
        assert re.fullmatch(r'train:[0-9a-f]{12} val:[0-9a-f]{12}', line['data'])
        assert line['data'] == lines[0]['data']
        assert line['commit'].removesuffix('-dirty') in git_log
    assert [line['other_data'] for line in lines] == ['', '', 'train']
    log = (project / 'work_dirs/tables/table/faster-lr-0-1/seed3/run.log').read_text()
    assert 'The train data is not what this config was made for: fingerprint ' in log
    assert '| 1 (1 on other data) |' in (project / 'out.md').read_text()
    cores = len(os.sched_getaffinity(0))
    assert [line['threads'] for line in lines] == [str(max(1, cores // 2)), str(cores), str(max(1, cores // 2))]
    mean = sum(float(line['last']) for line in lines[:2]) / 2
    row = next(row for row in (project / 'out.md').read_text().splitlines() if 'plain' in row)
    assert row.startswith('| [plain](configs/tiny.py) | 568 | 50.00 | ')
    assert f' {mean:.2f} ± ' in row
    assert (project / 'out.png').stat().st_size > 1000


def test_test_after_training_and_a_run_that_fails(project, monkeypatch):
    lines = []
    monkeypatch.setattr(MMLogger, '_log', lambda self, level, message, *args, **kwargs: lines.append(message))
    content = yaml.safe_load((project / 'table.yml').read_text())
    content['rows'].append(dict(name='bad', config='configs/tiny.py', options={'train_dataloader.batch_size': -1}))
    (project / 'table.yml').write_text(yaml.safe_dump(dict(content, seeds=[0], test=True)))
    with pytest.raises(PreflightError, match=r'bad, seed 0: exit code 2; .*run.log ends with\n(.*\n)*.*batch_size'):
        run_table(['table.yml', '--rows', 'bad', 'faster*', '--record', 'out.csv'])
    said = '\n'.join(lines).partition('MiB')[0]  # before the table
    assert re.search(r'failed: bad, seed 0: exit code 2; (.|\n)*batch_size', said)
    assert 'faster, lr 0.1, seed 3: done' in said
    (line,) = Table('table.yml', 'out.csv').results()
    assert line['row'] == 'faster, lr 0.1'
    assert line['test'] == line['last']  # validation is on the test set in this config
    summary = json.loads((project / 'work_dirs/tables/table/faster-lr-0-1/seed3/summary.json').read_text())
    assert summary['seed'] == 3
    assert summary['test'] == {'accuracy/top1': float(line['test'])}


def test_a_run_without_epochs_and_one_without_the_metric(project):
    table = Table('table.yml', 'out.csv')
    metric = dict(last=1.0, best=2.0, best_epoch=1, curve=[2.0, 1.0])
    summary = dict(epochs=0, metrics={'accuracy/top1': metric}, seconds_per_epoch=None, peak_memory_mib=1.0,
                   parameters=1, processes=1, device='CPU', versions=dict(torch='2'))
    (project / 'summary.json').write_text(json.dumps(summary))
    table.add('plain', 0, project)
    assert [(line['last'], line['seconds_per_epoch']) for line in table.results()] == [('1.0000', '')]
    (project / 'summary.json').write_text(json.dumps(dict(summary, metrics={'loss': metric})))
    with pytest.raises(PreflightError, match="no metric 'accuracy/top1'; there are loss"):
        table.add('plain', 1, project)


def test_a_row_that_was_changed_since_it_was_run(project):
    metric = dict(last=1.0, best=2.0, best_epoch=1, curve=[2.0, 1.0])
    (project / 'summary.json').write_text(json.dumps(dict(
        epochs=1, metrics={'accuracy/top1': metric}, seconds_per_epoch=None, peak_memory_mib=1.0, parameters=1,
        processes=1, device='CPU', versions=dict(torch='2'))))
    table = Table('table.yml', 'out.csv')
    table.add('plain', 0, project)
    assert [*table.changed()] == []
    table.rows['plain']['options'] = {'optim_wrapper.optimizer.lr': 9}
    (change,) = table.changed()
    assert 'has figures with options {}, the row has {"optim_wrapper.optimizer.lr": 9} now' in change
    table.rows['plain'].update(options={}, config='configs/other.py')
    (change,) = table.changed()
    assert 'has figures of tiny, the row is of other now. To run it anew, take its lines' in change


def test_a_record_of_before_has_empty_columns(project):
    old = FIELDS[:FIELDS.index('threads')]
    with open('out.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, old)
        writer.writeheader()
        writer.writerow(dict.fromkeys(old, '1') | dict(row='plain'))
    (line,) = Table('table.yml', 'out.csv').results()
    assert [line[name] for name in ('last', 'threads', 'data', 'other_data', 'commit')] == ['1', '', '', '', '']
    assert markdown(Table('table.yml', 'out.csv')).splitlines()[2].endswith('| 1 |')


@pytest.mark.parametrize(('jobs', 'caller', 'threads'), [
    ((1, ), {}, None), ((2, ), {}, '3'), ((4, ), {}, '1'), ((99, ), {}, '1'), ((1, 3), {}, None), ((2, 3), {}, '1'),
    ((2, ), {'OMP_NUM_THREADS': '5'}, '5')])
def test_runs_share_the_cores(monkeypatch, jobs, caller, threads):
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(6)), raising=False)
    for name, value in caller.items():
        monkeypatch.setenv(name, value)
    assert table_module.share_of_cores(*jobs).get('OMP_NUM_THREADS') == threads


def test_all_rows_of_a_seed_come_before_the_next_seed(project):
    table = Table('table.yml')
    assert table.runs(seeds=[1, 0]) == [('plain', 1), ('faster, lr 0.1', 1), ('plain', 0), ('faster, lr 0.1', 0)]
    assert table.runs() == [('plain', 0), ('plain', 1), ('faster, lr 0.1', 3)]  # a row may have its own seeds
    assert table.runs(['f*']) == [('faster, lr 0.1', 3)]


def test_the_seed_in_an_option(project):
    content = yaml.safe_load((project / 'table.yml').read_text())
    content['rows'][0]['options'] = {'load_from': 'runs/seed{seed}/epoch_1.pth'}
    (project / 'table.yml').write_text(yaml.safe_dump(content))
    assert Table('table.yml').options('plain', 1) == ['randomness.seed=1', 'load_from=runs/seed1/epoch_1.pth']


def test_errors(project):
    with pytest.raises(PreflightError, match=r"Table 'tabel.yml' does not exist; there are table.yml."):
        run_table(['tabel.yml'])
    with pytest.raises(PreflightError, match=r'No row matches x\*; there are plain, faster, lr 0.1.'):
        run_table(['table.yml', '--rows', 'x*'])
    (project / 'empty.yml').write_text('title: no\n')
    with pytest.raises(PreflightError, match=r"Table 'empty.yml' has no metric, seeds, rows."):
        run_table(['empty.yml'])
    (project / 'configs/tiny.py').unlink()
    with pytest.raises(PreflightError, match=r"row 'plain': Config 'configs/tiny.py' does not exist."):
        run_table(['table.yml'])


def test_configs_of_ours_by_name(project):
    content = yaml.safe_load((project / 'table.yml').read_text())
    content['rows'][0]['config'] = 'rkanet18-w8_1xb128-4e_fmnist'
    (project / 'table.yml').write_text(yaml.safe_dump(content))
    found = Path(Table('table.yml').rows['plain']['config'])
    assert found.samefile(ROOT / 'configs/small/rkanet18-w8_1xb128-4e_fmnist.py')


def record(table, rows, devices=()):
    """Write the record of a table: (row, seed, last, test, others); ``devices`` of its lines."""
    table.record.parent.mkdir(parents=True, exist_ok=True)
    with table.record.open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for (row, seed, last, test, others), device in zip_longest(rows, devices):
            writer.writerow(dict(
                row=row, seed=seed, config='configs/tiny.py', epochs=2, last=last, best=last, best_epoch=2, test=test,
                seconds_per_epoch=10 + seed, peak_memory_mib=100 + seed, parameters=568, others=others,
                device=device))


def test_differences_are_of_the_same_seeds(project):
    content = yaml.safe_load((project / 'table.yml').read_text())
    content.update(test=True, baseline='plain', rows=[*content['rows'], dict(
        name='other', config='configs/tiny.py', macs=1234567)])
    (project / 'table.yml').write_text(yaml.safe_dump(content))
    table = Table('table.yml', 'out.csv')
    record(table, [('plain', 0, 1, 50, ''), ('plain', 1, 1, 60, ''), ('other', 1, 2, 61, ''), ('other', 2, 3, 99, ''),
                   ('other', 0, 4, 52.5, '')])
    head, _, plain, faster, other = markdown(table).splitlines()
    assert head == ('| Tiny | parameters | MACs | published (paper) | validation, last epoch (ours) | '
                    'test, last epoch (ours) | over plain, paired | s/epoch | MiB | seeds |')
    assert plain == '| [plain](configs/tiny.py) | 568 | - | 50.00 | 1.00 ± 0.00 | 55.00 ± 7.07 | - | 10.0 | 101 | 2 |'
    assert faster == '| [faster, lr 0.1](configs/tiny.py) | - | - | - | not run | not run | - | - | - | 0 |'
    assert other == ('| [other](configs/tiny.py) | 568 | 1.23 M | - | 3.00 ± 1.00 | 70.83 ± 24.76 | '
                     '+1.75 ± 1.06 (2 of 3 seeds) | 10.0 | 102 | 3 |')
    (project / 'table.yml').write_text(yaml.safe_dump(dict(content, baseline='plan')))
    with pytest.raises(PreflightError, match="no row 'plan' for a baseline; there are plain, faster, lr 0.1, other."):
        Table('table.yml')


def test_costs_are_of_one_device(project):
    table = Table('table.yml', 'out.csv')
    record(table, [('plain', 2, 1, '', ''), ('plain', 0, 1, '', ''), ('plain', 1, 1, '', '')],
           ['1 x AMD EPYC', '1 x NVIDIA H200', '1 x AMD EPYC'])
    assert '| 10.0 | 100 | 3 |' in markdown(table)
    record(table, [('plain', 1, 1, '', ''), ('plain', 2, 1, '', ''), ('plain', 3, 1, '', '')],
           ['1 x AMD EPYC', '1 x AMD EPYC', '1 x NVIDIA H200'])
    assert '| 11.0 | 102 | 3 |' in markdown(table)


def test_other_metrics_with_names_and_a_scale(project):
    content = yaml.safe_load((project / 'table.yml').read_text())
    content.update(metric='coco/bbox_mAP', others=['coco/segm_mAP', 'lvis/segm_APs'], scale=100,
                   labels={'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP'})
    (project / 'table.yml').write_text(yaml.safe_dump(content))
    table = Table('table.yml', 'out.csv')
    record(table, [('plain', 0, 0.125, '', '0.25 -1.0')])
    head, _, plain, _ = markdown(table).splitlines()
    assert '| box AP (ours) | mask AP (ours) | lvis/segm_APs (ours) |' in head
    assert '| 50.00 | 12.50 | 25.00 | nan | 10.0 |' in plain  # no object is of that size
    (entry,) = models([table])
    assert [result['Task'] for result in entry['Results']] == ['Object Detection'] * 2
    assert entry['Results'][1]['Metrics'] == pytest.approx(
        {'box AP': 12.5, 'mask AP': 25.0, 'lvis/segm_APs': float('nan')}, nan_ok=True)


def test_the_readme_and_the_metafile_follow_the_record(project):
    (project / 'tables').mkdir()
    (project / 'table.yml').rename(project / 'tables/table.yml')
    page, metafile = project / 'README.md', project / 'metafile.yml'
    metafile.write_text('Models:\n  - {Name: by hand}\n')
    page.write_text('# Head\n\n<!-- table -->\n\n| old |\n|---|\n\ntail\n')
    record(Table('tables/table.yml'), [('plain', 0, 12.5, '', '')], ['1 x AMD EPYC'])
    run_table(['tables/table.yml', '--collect'])
    assert page.read_text() == f'# Head\n\n<!-- table -->\n\n{markdown(Table("tables/table.yml"))}\ntail\n'
    (project / 'tables/environment.yml').write_text('{name: env, dependencies: [python]}\n')
    page.write_text('<!-- table -->\n\nwhat I learned\n\ntail\n')
    run_table(['tables/table.yml', '--collect'])
    assert page.read_text().endswith('|\n\nwhat I learned\n\ntail\n')
    page.write_text('<!-- table -->\n')
    run_table(['tables/table.yml', '--collect'])
    assert page.read_text() == f'<!-- table -->\n\n{markdown(Table("tables/table.yml"))}'
    (project / 'tables/other.yml').write_text('{title: another, rows: []}\n')
    with pytest.raises(PreflightError, match="'tables/other.yml' has no metric, seeds"):  # before anything is run
        run_table(['tables/table.yml'])
    hand, entry = yaml.safe_load(metafile.read_text())['Models']
    assert hand == {'Name': 'by hand'}
    assert entry['Name'] == 'tiny'
    published, ours = entry['Results']
    assert published['Metrics'] == {'best epoch': 50.0}
    assert ours['Metrics'] == {'last epoch': 12.5, 'best epoch': 12.5}
    assert ours['Command'] == 'python tools/run_table.py tables/table.yml --rows "plain"'
    assert ours['Seeds'] == [0]
    assert ours['Machine'] == 'AMD EPYC'


def test_pages_are_written_by_one_process_at_a_time(project, monkeypatch):
    (project / 'tables').mkdir()
    (project / 'table.yml').rename(project / 'tables/table.yml')
    seen = []

    def publish(tables):
        with pytest.raises(LockedError), locked(project / 'logs', wait=False):
            pass
        seen.extend(tables)
    monkeypatch.setattr(table_module, 'publish', publish)
    run_table(['tables/table.yml', '--collect'])
    assert len(seen) == 1


def test_a_table_takes_from_another_what_it_does_not_give(project):
    (project / 'configs/wide.py').write_text("_base_ = './tiny.py'\n")
    text = yaml.safe_load((project / 'table.yml').read_text())
    text |= dict(options={'a.b': 1, 'optim_wrapper.optimizer.lr': 0.2}, baseline='plain')
    text['rows'][0]['parameters'] = 12
    text['rows'].append(dict(name='third', config='configs/tiny.py'))
    (project / 'table.yml').write_text(yaml.safe_dump(text))
    assert Table('table.yml').options('plain', 0) == ['randomness.seed=0', 'a.b=1', 'optim_wrapper.optimizer.lr=0.2']
    assert Table('table.yml').options('faster, lr 0.1', 0)[1:3] == ['a.b=1', 'optim_wrapper.optimizer.lr=0.1']

    other = project / 'other.yml'
    heir = dict(_base_='table.yml', title='Wide', configs={'configs/tiny.py': 'configs/wide.py'}, without=['third'])
    other.write_text(yaml.safe_dump(heir))
    table = Table('other.yml')
    assert (table.title, table.metric, table.baseline) == ('Wide', 'accuracy/top1', 'plain')
    assert list(table.rows) == ['plain', 'faster, lr 0.1']
    assert {row['config'] for row in table.rows.values()} == {'configs/wide.py'}
    assert not {'parameters', 'published'} & set(table.rows['plain'])  # those are of another model
    assert table.options('faster, lr 0.1', 3) == Table('table.yml').options('faster, lr 0.1', 3)
    assert table.runs() == [('plain', 0), ('plain', 1), ('faster, lr 0.1', 3)]

    other.write_text(yaml.safe_dump(heir | dict(options={'a.b': 2})))
    assert Table('other.yml').options('plain', 0) == ['randomness.seed=0', 'a.b=2']
    for wrong, message in [
            (dict(_base_='none.yml'), "_base_ names 'none.yml', which is no other table"),
            (dict(_base_='other.yml'), 'which is no other table'),
            (dict(without=['forth']), "without names 'forth', which no row of 'table.yml' has; there are plain,"),
            (dict(configs={'tiny.py': 'a.py'}), "configs names 'tiny.py', which no row of 'table.yml' has; there are "),
            (dict(configs=['tiny.py']), 'configs are written as THERE: HERE'),
            (dict(rows=text['rows']), 'configs is of the rows of another table, which _base_ names'),
            (dict(options=[1]), "'other.yml': options are written as KEY: VALUE")]:
        other.write_text(yaml.safe_dump(heir | wrong))
        with pytest.raises(PreflightError, match=message):
            Table('other.yml')
    (project / 'table.yml').write_text(yaml.safe_dump(text | dict(_base_='other.yml')))
    other.write_text(yaml.safe_dump(heir))
    with pytest.raises(PreflightError, match='which is no other table'):  # each of the other
        Table('other.yml')


TABLES = sorted((ROOT / 'configs').glob('*/tables/*.yml'))


def test_tables_of_the_project_are_whole(root, monkeypatch):
    monkeypatch.chdir(root)
    assert TABLES
    for topic in sorted({path.parent.parent for path in TABLES}):
        tables = [Table(path.relative_to(root)) for path in TABLES if path.parent.parent == topic]
        page, metafile = (topic / 'README.md').read_text(), (topic / 'metafile.yml').read_text()
        for table in tables:
            assert f'<!-- {table.name} -->\n\n{markdown(table)}' in page, (
                f'{topic.name}/README.md lacks what `run_table.py {table.path} --collect` writes')
            assert table.record.with_suffix('.md').read_text() == markdown(table)
        assert yaml.safe_load(metafile.partition(MARK)[2]) == models(tables)


@pytest.mark.parametrize(('path', 'name'), [
    (path, name) for path in TABLES for name in Table(path).rows])
def test_parameters_and_macs_of_a_row_are_those_of_its_model(path, name, root, monkeypatch, quick_build):
    monkeypatch.chdir(root)
    table = Table(path)
    row = table.rows[name]
    options = DictAction('--cfg-options', 'options', nargs='+')
    args = argparse.Namespace()
    options(None, args, [f'{key}={value}' for key, value in row.get('options', {}).items()])
    cfg = load_config(row['config'], args.options)
    init_default_scope(cfg.default_scope)
    model = MODELS.build({'data_preprocessor': cfg.get('data_preprocessor'), **cfg.model})
    recorded = [int(line['parameters']) for line in table.results() if line['row'] == name]
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert {counted} == {row.get('parameters', counted), *recorded}
    if table.shape:
        flops = FlopAnalyzer(build(cfg.model.to_dict(), cfg.default_scope).eval(), torch.zeros(1, *table.shape))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert int(flops.total()) == row['macs']
