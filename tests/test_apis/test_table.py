"""Tables of runs: two tiny classifiers over seeds, through the command line."""

import csv
import json

import pytest
import yaml
from mnist import write_mnist

from rkan_mm.apis import table as table_module
from rkan_mm.apis.preflight import PreflightError
from rkan_mm.apis.table import Table, run_table

CONFIG = """
_base_ = '{root}/configs/_base_/ckan_fmnist.py'
model = dict(backbone=dict(channels=(2, 2)), head=dict(in_channels=50))
train_cfg = dict(max_epochs=2)
train_dataloader = dict(batch_size=20)
"""


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    """A folder with a config, data and tools, as the root of a checkout."""
    write_mnist(tmp_path / 'data/fashion_mnist', height=28, width=28)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/tiny.py').write_text(CONFIG.format(root=root))
    (tmp_path / 'tools').symlink_to(root / 'tools')
    rows = [dict(name='plain', config='configs/tiny.py', published=50),
            dict(name='faster, lr 0.1', config='configs/tiny.py', seeds=[3],
                 options={'optim_wrapper.optimizer.lr': 0.1})]
    (tmp_path / 'table.yml').write_text(yaml.safe_dump(
        dict(title='Tiny', metric='accuracy/top1', seeds=[0, 1], rows=rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(root))
    return tmp_path


def test_a_table_is_run_once_and_collected(project, monkeypatch):
    run_table(['table.yml', '--rows', 'plain', '--seeds', '1', '--record', 'out.csv'])
    launched = []
    launch = table_module.launch
    monkeypatch.setattr(table_module, 'launch', lambda *args: (launched.append(args[1:3]), launch(*args)))
    run_table(['table.yml', '--record', 'out.csv', '--jobs', '2'])
    assert sorted(launched) == [('faster, lr 0.1', 3), ('plain', 0)]
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
    mean = sum(float(line['last']) for line in lines[:2]) / 2
    row = next(row for row in (project / 'out.md').read_text().splitlines() if 'plain' in row)
    assert row.startswith('| [plain](tiny.py) | 568 | 50.00 | ')
    assert f' {mean:.2f} ± ' in row
    assert (project / 'out.png').stat().st_size > 1000


def test_test_after_training_and_a_run_that_fails(project):
    content = yaml.safe_load((project / 'table.yml').read_text())
    content['rows'].append(dict(name='bad', config='configs/tiny.py', options={'train_dataloader.batch_size': -1}))
    (project / 'table.yml').write_text(yaml.safe_dump(dict(content, seeds=[0], test=True)))
    with pytest.raises(PreflightError, match=r'bad, seed 0: exit code 1; .*run.log ends with\n(.*\n)*.*batch_size'):
        run_table(['table.yml', '--rows', 'bad', 'faster*', '--record', 'out.csv'])
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


def test_errors(project):
    with pytest.raises(PreflightError, match=r"Table 'tabel.yml' does not exist; there are table.yml."):
        run_table(['tabel.yml'])
    with pytest.raises(PreflightError, match=r'No row matches x\*; there are plain, faster, lr 0.1.'):
        run_table(['table.yml', '--rows', 'x*'])
    (project / 'empty.yml').write_text('title: no\n')
    with pytest.raises(PreflightError, match=r"Table 'empty.yml' has no metric, seeds, rows."):
        run_table(['empty.yml'])
    (project / 'configs/tiny.py').unlink()
    with pytest.raises(PreflightError, match=r"row 'plain': config 'configs/tiny.py' does not exist."):
        run_table(['table.yml'])


def test_tables_of_the_project_are_whole(root, monkeypatch):
    monkeypatch.chdir(root)
    page = (root / 'configs/README.md').read_text()
    tables = sorted((root / 'configs/tables').glob('*.yml'))
    assert tables
    for path in tables:
        table = Table(path)
        assert table.markdown() in page, f'configs/README.md lacks what `run_table.py {path.name} --collect` writes'
        assert table.record.with_suffix('.md').read_text() == table.markdown()
