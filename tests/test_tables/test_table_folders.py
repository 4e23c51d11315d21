"""No run is gone on with as that of another row, or of what a row was before; nothing in a table is read by nobody."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rkan_mm.preflight import PreflightError
from rkan_mm.tables import run as table_module
from rkan_mm.tables.run import run_table
from rkan_mm.tables.table import Table, locked


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b'):
        (tmp_path / f'{name}.py').write_text('')

    def table(*rows, **parts):
        rows = [dict(dict(config='a.py'), **row) for row in rows]
        (tmp_path / 'table.yml').write_text(yaml.safe_dump(
            dict(dict(title='T', metric='accuracy/top1', seeds=[0], rows=rows), **parts)))
        return Table('table.yml')
    return table


@pytest.mark.parametrize('names', [('RKAN', 'RKAN+'), ('KAN (a)', 'KAN [a]'), ('cnn', 'CNN'), ('+', '++')])
def test_names_of_one_folder(write, names):
    with pytest.raises(PreflightError, match="would be trained in one folder, '.*': let their names differ in letters"):
        write(*(dict(name=name) for name in names))


def test_folders_of_rows(write):
    table = write(dict(name='RKAN'), dict(name='RKAN 2'))
    assert [table.folder(name, 1).as_posix() for name in table.rows] == [
        'work_dirs/tables/table/rkan/seed1', 'work_dirs/tables/table/rkan-2/seed1']


@pytest.mark.parametrize(('change', 'message'), [
    (dict(options={'optim_wrapper.optimizer.lr': 0.2}), r"begun with options=.*0.1\} \(now .*0.2\}\), and would be"),
    (dict(config='b.py'), r"begun with config='a' \(now 'b'\), .* To run it anew, remove that folder."),
    (dict(name='row!', published=5), None),
    ('optim_wrapper = dict(lr=0.2)\ntrain_dataloader = dict(num_workers=2)', 'begun with another optim_wrapper, and'),
    ('train_dataloader = dict(batch_size=4)', 'begun with another optim_wrapper, another train_dataloader, and would'),
    ('# a word\noptim_wrapper = dict(lr=0.1)\ntrain_dataloader = dict(num_workers=0)', None),
])
@pytest.mark.parametrize('saved', [True, False])
def test_a_row_that_was_changed_since_it_was_begun(write, change, message, saved):
    """Also where its lines have been taken out of the record: a resume would give the figures of before.

    A run that failed at a slip, and has saved nothing, is begun anew.
    """
    row = dict(name='row', options={'optim_wrapper.optimizer.lr': 0.1})
    table, config = write(row), Path('a.py')
    config.write_text('optim_wrapper = dict(lr=0.1)\ntrain_dataloader = dict(num_workers=2)')
    for _ in range(2):
        table.begin('row', table.folder('row', 0))
    if saved:
        (table.folder('row', 0) / 'last_checkpoint').touch()
    if isinstance(change, str):
        config.write_text(change)
        change = {}
    table = write({**row, **change})
    name = change.get('name', 'row')
    if message is None or not saved:
        table.begin(name, table.folder(name, 0))
        (table.folder(name, 0) / 'last_checkpoint').touch()
        return table.begin(name, table.folder(name, 0))
    with pytest.raises(PreflightError, match=message):
        table.begin(name, table.folder(name, 0))


def test_a_config_that_was_changed_since_it_was_run(write, tmp_path):
    table = write(dict(name='row'))
    Path('a.py').write_text('model = dict(depth=18)')
    table.begin('row', table.folder('row', 0))
    (table.folder('row', 0) / 'summary.json').write_text(
        '{"metrics": {"accuracy/top1": {"last": 1, "best": 2, "best_epoch": 1}}, "epochs": 4, "seconds_per_epoch": 1, '
        '"peak_memory_mib": 1, "parameters": 7, "processes": 1, "device": "CPU", "versions": {"torch": "2"}}'.replace(
            '"best_epoch": 1', '"best_epoch": 1, "curve": [2, 1]'))
    table.add('row', 0, table.folder('row', 0))
    assert [*table.changed()] == []
    Path('a.py').write_text('model = dict(depth=50)')
    (change,) = table.changed()
    assert change.startswith('row: a.py has been changed since it gave the figures in ')


@pytest.mark.parametrize(('row', 'parts', 'message'), [
    (dict(option={'a.b': 1}), {}, "row 'row': option would change nothing; a row has name, config, published, seeds,"),
    (dict(lr=1), {}, "row 'row': lr would change nothing"),
    ({}, dict(option={'a.b': 1}), "'option' is nothing that is read; is options meant?"),
    ({}, dict(without=['row']), 'without is of the rows of another table, which _base_ names.'),
    (dict(options={'a.b': 2, 'c': 3}), dict(options={'a.b': 1}), None),
    ({}, dict(base_line='row'), "'base_line' is nothing that is read; is baseline meant?"),
    ({}, dict(other=['x']), "'other' is nothing that is read; is others meant?"),
    ({}, dict(note='of my own'), None),
    ({}, dict(others='coco/segm_mAP'), r"others is a list of names of metrics, such as .*, not 'coco/segm_mAP'."),
    ({}, dict(metric=['a']), r"metric is a name, not \['a'\]."),
    ({}, dict(baseline=5), 'baseline is a name, not 5.'),
    ({}, dict(scale='100'), "scale is a number, not '100'."),
    ({}, dict(labels=['AP']), 'labels are written as METRIC: NAME.'),
])
def test_what_nobody_reads(write, row, parts, message):
    if message is None:
        assert [*write(dict(name='row', **row), **parts).rows] == ['row']
    else:
        with pytest.raises(PreflightError, match=message):
            write(dict(name='row', **row), **parts)


def test_options_within_options(write):
    table = write(dict(name='row', options={
        'model': {'backbone': {'depth': 18}, 'neck': None}, 'a.b': [1, 2], 'c': {}}))
    assert table.options('row', 0)[1:] == ['a.b=[1, 2]', 'c={}', 'model.backbone.depth=18', 'model.neck=None']
    table = write(dict(name='row', options={'model': {'depth': 18}}), options={'model': {'depth': 50, 'width': 8}})
    assert table.options('row', 0)[1:] == ['model.depth=18', 'model.width=8']


def test_names_of_rows_are_patterns_of_themselves(write):
    table = write(dict(name='KAN [a]'), dict(name='KAN b'))
    assert table.runs(['KAN [a]']) == [('KAN [a]', 0)]
    assert table.runs(['KAN [ab]']) == [('KAN b', 0)]


def test_a_table_that_ends_in_yaml(write, tmp_path):
    write(dict(name='row'))
    (tmp_path / 'table.yml').rename(tmp_path / 'table.yaml')
    (tmp_path / 'README.md').write_text('<!-- table -->\n\n')
    run_table(['table.yaml', '--collect'])
    assert '| [row](a.py) | - | not run | not run |' in (tmp_path / 'README.md').read_text()


def test_a_run_that_another_process_is_at(write, tmp_path, monkeypatch):
    """Also where the tool that began it has been killed, and it has not."""
    table = write(dict(name='row'))
    folder = table.folder('row', 0)
    folder.mkdir(parents=True)
    with locked(folder) as file:
        left = subprocess.Popen([sys.executable, '-c', 'input()'], pass_fds=(file,), stdin=subprocess.PIPE)
    began = []
    monkeypatch.setattr(table_module.subprocess, 'run', lambda *args, **options: (
        began.append(args), subprocess.CompletedProcess(args, 0))[1])
    with pytest.raises(PreflightError, match='Another process is training in .*row/seed0: wait for its end, or end it'):
        table_module.launch(table, 'row', 0, folder, 'none', 1)
    run_table(['table.yml'])  # no failure: the other process has it
    left.communicate(b'\n')
    assert not began
    table_module.launch(table, 'row', 0, folder, 'none', 1)
    assert len(began) == 1


def test_a_table_that_is_broken_off_begins_no_other_run(write, monkeypatch):
    write(dict(name='A'), dict(name='B'), dict(name='C'))
    began = []

    def launch(table, name, *args):
        began.append(name)
        time.sleep(0.5)
        if len(began) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    monkeypatch.setattr(table_module, 'launch', launch)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_table(['table.yml'])
    finally:
        signal.signal(signal.SIGINT, before)
    assert began == ['A']


def test_the_end_of_a_log_that_is_no_text(write, monkeypatch):
    table = write(dict(name='row'))
    monkeypatch.setattr(table_module.subprocess, 'run', lambda *args, stdout, **options: (
        stdout.buffer.write(b'caf\xe9'), subprocess.CompletedProcess(args, 1))[1])
    with pytest.raises(PreflightError, match='exit code 1; .*run.log ends with\n  caf'):
        table_module.launch(table, 'row', 0, table.folder('row', 0), 'none', 1)
