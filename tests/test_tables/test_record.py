"""What a record cannot be read back as is refused; what of its runs does not go together is told."""

import csv
import subprocess
import sys

import pytest
import yaml

from rkan_mm.preflight import PreflightError
from rkan_mm.tables.record import disagreements, machine_of
from rkan_mm.tables.report import markdown
from rkan_mm.tables.run import run_table
from rkan_mm.tables.statistics import compare, statistics
from rkan_mm.tables.table import FIELDS, Table

SUMMARY = (
    '{"metrics": {"accuracy/top1": {"last": 1, "best": 2, "best_epoch": 1, "curve": [2, 1]}}, "epochs": 4, '
    '"seconds_per_epoch": 1, "peak_memory_mib": 1, "parameters": 7, "processes": 1, "device": "CPU", '
    '"versions": {"torch": "2"}}')


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A table of the rows A and B with seeds 0 and 1, and a record of four runs, changed line by line."""
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text('x = 1\n')
    (tmp_path / 't.yml').write_text(yaml.safe_dump(dict(
        title='T', metric='accuracy/top1', seeds=[0, 1], baseline='A',
        rows=[dict(name='A', config='a.py'), dict(name='B', config='b.py')])))

    def record(changes=(), tail='', rows='AB'):
        lines = [dict.fromkeys(FIELDS, '') | dict(
            row=row, seed=seed, config=f'{row.lower()}.py', epochs=4, last=f'9{seed}.0', best='95.0', best_epoch=1,
            peak_memory_mib=10, parameters=7, options='{}', data='train:1 val:2') for row in rows for seed in (0, 1)]
        for number, change in dict(changes).items():
            lines[number].update(change)
        (tmp_path / 'logs').mkdir(exist_ok=True)
        with (tmp_path / 'logs/t.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(lines)
            file.write(tail)
        return Table('t.yml')
    return record


@pytest.mark.parametrize(('changes', 'tail', 'message'), [
    ({3: dict(seed='00')}, '', 'line 5: seed 0 of B stands there twice, and would count twice: take one out.'),
    ({}, 'B,2,b.py', 'line 6, of B, is torn: take it out, and the run that it is of will be collected, or made, anew.'),
    ({}, 'B', 'line 6, of B, is torn'),
    ({2: dict(last='', best='')}, '', 'line 4, of B, is torn'),
    ({2: dict(best='9o.0')}, '', 'line 4, of B, is torn'),
    ({2: dict(peak_memory_mib='1,5 GB')}, '', 'line 4, of B, is torn'),
    ({2: dict(parameters='7.0')}, '', 'line 4, of B, is torn'),
    ({}, '<<<<<<< HEAD\n', 'line 6: <<<<<<< is of a merge that git could not do: do it by hand.'),
])
def test_refused(write, changes, tail, message):
    with pytest.raises(PreflightError, match=message):
        write(changes, tail).results()


def test_another_file(write, tmp_path):
    table = write()
    (tmp_path / 'logs/t.csv').write_text('row;seed;last\nA;0;1\n')
    with pytest.raises(PreflightError, match=r't.csv is no record of runs, with commas .*: it has no column row, seed'):
        table.results()


def test_a_record_as_excel_saves_it(write, tmp_path):
    table = write()
    path = tmp_path / 'logs/t.csv'
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n'))
    assert [line['last'] for line in table.results()] == ['90.0', '91.0'] * 2


@pytest.mark.parametrize(('changes', 'told'), [
    ({}, []),
    ({2: dict(epochs=1)}, ['B: its runs are of 1 and 4 epochs, and its mean is of different trainings.']),
    ({2: dict(parameters=9)}, ['B: its runs are of 7 and 9 parameters, and its mean is of different trainings.']),
    ({2: dict(parameters=''), 3: dict(data='')}, []),
    ({0: dict(epochs=2), 1: dict(epochs=2)}, []),  # another row may train for longer
    ({3: dict(data='train:5 val:2')}, ['B: its runs are of 2 sets of training data (train:1, train:5), and its mean is '
                                       'of different trainings.']),
    ({i: dict(data=f'train:{i} val:2', options='{"fold": "{seed}"}') for i in (2, 3)}, []),  # of each seed its own
    ({2: dict(device='1 x CPU'), 3: dict(device='1 x CPU + 2 x NVIDIA H100')},  # one was gone on with
     ['B: its runs are of 1 and 1+2 processes, and its mean is of different trainings.']),
    ({2: dict(device='CPU, 1 thread(s)'), 3: dict(device='1 x CPU')}, []),  # as older records have it
    ({1: dict(device='1 x AMD EPYC'), 3: dict(device='1 x NVIDIA H100')},
     ['B: seed 1 ran on another machine than that of A (NVIDIA H100, not AMD EPYC): their differences are of the '
      'machines, too.']),
    ({i: dict(device=f'1 x {"AMD EPYC" if i % 2 else "NVIDIA H100"}') for i in range(4)}, []),  # seed by seed the same
    ({1: dict(device='1 x CPU'), 3: dict(device='1 x AMD EPYC')}, []),  # it may be the same
    ({3: dict(data='train:1 val:3')},
     ['The val data of the runs are not the same (val:2, val:3, as in B): their figures do not compare.']),
    ({2: dict(device='1 x CPU'), 3: dict(device='4 x CPU')},  # four batches a step
     ['B: its runs are of 1 and 4 processes, and its mean is of different trainings.']),
    ({2: dict(device='1 x CPU'), 3: dict(device='1 x NVIDIA H100')}, []),
    ({2: dict(recipe='a'), 3: dict(recipe='b')},
     ['B: its runs are of 2 states of its config, and its mean is of different trainings.']),
    ({3: dict(options='{"lr": 1}')},
     ['B: its runs are of 2 sets of options, and its mean is of different trainings.']),
    ({2: dict(last='nan')}, ['B: figures of seed 0 are no number, and so is its mean.']),
])
def test_told(write, changes, told, capsys):
    assert list(disagreements(write(changes).results(), 'A')) == told
    for tell in (lambda: run_table(['t.yml', '--collect', '--record', 'logs/t.csv']), lambda: compare(Table('t.yml'))):
        tell()
        out = capsys.readouterr().out
        assert all(f'WARNING: {each}' in out for each in told)


def test_a_figure_that_is_no_number_stops_no_table(write):
    table = write({2: dict(last='nan')})
    assert '| nan | 95.00 ± 0.00 | nan |' in markdown(table)
    assert '| B | +nan | +nan to +nan | nan | nan | 2 |' in statistics(table)


def test_lines_of_rows_that_the_table_has_no_more_stay(write, tmp_path):
    table = write(rows='ZAB')
    assert [line['row'] for line in table.results()] == ['A', 'A', 'B', 'B']
    (tmp_path / 'summary.json').write_text(SUMMARY)
    table.add('B', 1, tmp_path)
    with (tmp_path / 'logs/t.csv').open() as file:
        assert [(line['row'], line['last']) for line in csv.DictReader(file)] == [
            ('A', '90.0'), ('A', '91.0'), ('B', '90.0'), ('B', '1.0000'), ('Z', '90.0'), ('Z', '91.0')]


def test_a_run_that_was_gone_on_with_elsewhere(write, tmp_path):
    table = write()
    (tmp_path / 'summary.json').write_text(
        f'{SUMMARY[:-1]}, "devices": ["1 x AMD EPYC", "1 x NVIDIA H200"], "threads": 1, "all_threads": ["2", "1"]}}')
    table.add('A', 0, tmp_path)
    line = table.results()[0]
    assert (line['device'], line['threads']) == ('1 x AMD EPYC + 1 x NVIDIA H200', '2+1')
    assert machine_of(line) == 'AMD EPYC + NVIDIA H200'


def test_numbers_that_a_hand_left_out(write):
    table = write({2: dict(peak_memory_mib='', parameters=''), 3: dict(peak_memory_mib='')})
    assert markdown(table).splitlines()[3].startswith('| [B](b.py) | 7 |')
    assert markdown(table).splitlines()[3].endswith('| - | - | 2 |')


@pytest.mark.parametrize(('metric', 'others', 'cells'), [
    ('coco/bbox_mAP', ['AR', 'coco/segm_mAP'], '90.00 | 2.00 | 1.00'),
    ('coco/bbox_mAP', ['coco/segm_mAP'], '90.00 | 1.00'),
    ('coco/bbox_mAP', [], '90.00 | 95.00'),
    ('coco/segm_mAP', ['AR'], 'of coco/bbox_mAP, coco/segm_mAP, AR; the table wants coco/segm_mAP, AR. Take the line'),
    ('coco/bbox_mAP', ['AR', 'AR_s'], 'of coco/bbox_mAP, coco/segm_mAP, AR; the table wants coco/bbox_mAP, AR, AR_s.'),
])
def test_metrics_of_a_table_that_were_changed_since_it_was_run(write, tmp_path, metric, others, cells):
    """No figure stands under the name of another."""
    write({0: dict(others='1.0 2.0', metrics='["coco/bbox_mAP", "coco/segm_mAP", "AR"]')}, rows='A')
    lines = (tmp_path / 'logs/t.csv').read_text().splitlines()[:2]
    (tmp_path / 'logs/t.csv').write_text('\n'.join([*lines, '']))
    content = yaml.safe_load((tmp_path / 't.yml').read_text())
    (tmp_path / 't.yml').write_text(yaml.safe_dump(dict(content, metric=metric, others=others)))
    if 'wants' in cells:
        with pytest.raises(PreflightError, match=cells):
            markdown(Table('t.yml'))
    else:
        assert f'| 7 | {cells} |' in markdown(Table('t.yml'))


def test_a_table_that_was_to_be_tested_only_later(write, tmp_path):
    write({0: dict(test='50.0')})
    content = yaml.safe_load((tmp_path / 't.yml').read_text())
    (tmp_path / 't.yml').write_text(yaml.safe_dump(dict(content, test=True)))
    with pytest.raises(PreflightError, match=r't.csv: A, seed 1 was not tested, and the table says test: true. Take '):
        markdown(Table('t.yml'))


def test_costs_name_their_machine_where_rows_differ_in_it(write):
    cpu, gpu = ({'seconds_per_epoch': 9, 'device': f'1 x {name}', 'threads': 1} for name in ('AMD EPYC', 'NVIDIA H200'))

    def cells(changes):
        return [line.split(' | ')[-3] for line in markdown(write(changes)).splitlines()[2:]]

    assert cells({0: cpu, 1: gpu, 2: cpu, 3: gpu}) == ['9.0', '9.0']
    assert cells({0: cpu, 1: cpu, 2: gpu, 3: gpu}) == ['9.0 (AMD EPYC)', '9.0 (NVIDIA H200)']
    assert cells({0: cpu, 1: cpu, 2: cpu | {'threads': 8}}) == ['9.0 (threads: 1)', '9.0 (threads: 8)']
    assert cells({0: cpu, 1: cpu, 2: cpu | {'device': '1 x CPU'}}) == ['9.0', '9.0']  # an older record names none
    assert cells({0: cpu, 1: cpu | {'seconds_per_epoch': 2, 'threads': 8}}) == ['9.0', '-']  # one run of each row


def test_figures_of_a_test_beside_other_metrics(write, tmp_path):
    write({0: dict(others='1.0', test='50.0')}, rows='A')
    lines = (tmp_path / 'logs/t.csv').read_text().splitlines()[:2]
    (tmp_path / 'logs/t.csv').write_text('\n'.join([*lines, '']))
    content = yaml.safe_load((tmp_path / 't.yml').read_text())
    (tmp_path / 't.yml').write_text(yaml.safe_dump(dict(content, others=['AR'], test=True)))
    head, _, row, *_ = markdown(Table('t.yml')).splitlines()
    assert '| accuracy/top1, test (ours) | accuracy/top1, validation (ours) | AR, validation (ours) |' in head
    assert '| 50.00 | 90.00 | 1.00 |' in row


def test_differences_of_fewer_seeds_say_so(write):
    table = write({1: dict(row='C')})
    assert '| -0.00 (1 of 2 seeds) |' in markdown(table) or '| +0.00 (1 of 2 seeds) |' in markdown(table)


def test_lines_that_two_processes_add_at_once(write, tmp_path):
    table = write(rows='')
    (tmp_path / 'summary.json').write_text(SUMMARY)
    command = [sys.executable, '-c', 'import sys; from pathlib import Path; from rkan_mm.tables.table import Table; '
               'table = Table("t.yml"); print(flush=True); input(); '
               '[table.add(sys.argv[1], seed, Path()) for seed in range(30)]']
    both = [subprocess.Popen([*command, row], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for row in 'AB']
    for process in both:
        process.stdout.readline()
    for process in both:
        process.stdin.write('\n')
        process.stdin.flush()
    assert [process.wait() for process in both] == [0, 0]
    for process in both:
        process.stdin.close()
        process.stdout.close()
    assert len(table.results()) == 60
    assert [path.name for path in (tmp_path / 'logs').iterdir()] == ['t.csv']


def test_a_record_is_a_csv_file(write):
    write()
    with pytest.raises(PreflightError, match=r"--record 'logs/t.md' must end in .csv"):
        run_table(['t.yml', '--record', 'logs/t.md'])
