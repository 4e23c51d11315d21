"""Statistics of tables, against scipy and by hand, and those of the pages against the records."""

import csv
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT
from scipy import stats

from rkan_mm.tables.statistics import compare, holm, seeds_needed, statistics
from rkan_mm.tables.table import FIELDS, Table

PAGE, TESTS = ROOT / 'docs/does-rkan-help.md', ROOT / 'docs/does-rkan-help-tests.md'


def table(folder, runs, **content):
    (folder / 'config.py').write_text('')
    rows = [dict(name=name, config=str(folder / 'config.py')) for name in dict.fromkeys(name for name, _, _ in runs)]
    path = folder / 'table.yml'
    path.write_text(yaml.safe_dump(dict(title='T', metric='m', seeds=[0], rows=rows, **content)))
    with (folder / 'out.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(dict(row=name, seed=seed, last=last, test=last / 2) for name, seed, last in runs)
    return Table(path, folder / 'out.csv')


def test_differences_are_paired_by_seed_and_tested_as_scipy_does(tmp_path):
    plain, other = np.array([50.0, 51, 49, 52]), np.array([50.5, 52.5, 49.2, 53])
    runs = [('plain', seed, value) for seed, value in enumerate(plain)]
    runs += [('other', seed, other[seed]) for seed in (3, 1, 0, 2)] + [('other', 7, 99.0), ('one', 0, 51.0)]
    whole, one = compare(table(tmp_path, runs, baseline='plain'))
    expected = stats.ttest_rel(other, plain)
    assert (whole.row, whole.seeds) == ('other', 4)
    assert whole.difference == pytest.approx((other - plain).mean())
    assert whole.p == pytest.approx(expected.pvalue)
    assert (whole.low, whole.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert whole.holm == pytest.approx(whole.p)  # the row of one seed has no test
    assert (one.seeds, one.difference) == (1, 1.0)
    assert np.isnan([one.low, one.p, one.holm]).all()


def test_of_a_test_split_and_against_any_row(tmp_path):
    runs = [('a', 0, 10.0), ('a', 1, 12.0), ('b', 0, 11.0), ('b', 1, 14.0)]
    one, = compare(table(tmp_path, runs, test=True, scale=100), 'b')
    assert one.difference == pytest.approx(-75)
    assert statistics(table(tmp_path, runs), 'b').splitlines()[2].startswith('| a | -1.50 | ')
    with pytest.raises(ValueError, match='no row None to compare with; there are a, b'):
        compare(table(tmp_path, runs))


def test_no_p_is_shown_as_nothing(tmp_path):
    runs = [(row, seed, seed * seed + gain + seed / 1000) for row, gain in (('a', 0), ('b', 5)) for seed in range(4)]
    runs = [(row, seed, value + (row == 'b') * seed / 1000) for row, seed, value in runs]
    assert statistics(table(tmp_path, runs), 'a').splitlines()[2].endswith('| < 0.001 | < 0.001 | 4 |')


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, float('nan'), 0.6])[0] == 1.0
    assert holm([]) == []


def test_seeds_needed_by_the_usual_tables():
    assert seeds_needed(0.5, 1.0) == 34  # Cohen's d of 0.5
    assert seeds_needed(-0.8, 1.0) == 15
    assert seeds_needed(0.2, 1.0) == 199
    with pytest.raises(ValueError, match='a difference other than 0'):
        seeds_needed(0, 1.0)


def test_of_some_rows_and_seeds_alone(tmp_path):
    """A test by fresh seeds: those that chose the row are left out, and Holm corrects for what is compared alone."""
    runs = [(row, seed, 10 * seed + gain * (seed > 2) + seed % 2)
            for row, gain in dict(plain=0, a=1, b=2, c=3).items() for seed in range(6)]
    runs = [(row, seed, value + (row == 'b') * seed) for row, seed, value in runs]
    whole = table(tmp_path, runs, baseline='plain')
    b, = compare(whole, 'a', rows=['b'], seeds=range(3, 6))
    assert (b.row, b.seeds, b.difference) == ('b', 3, 5)  # by all six seeds 3
    assert b.holm == b.p == pytest.approx(stats.ttest_1samp([4, 5, 6], 0).pvalue)
    assert [each.row for each in compare(whole, rows=['c', 'a'])] == ['c', 'a']
    with pytest.raises(ValueError, match="no row 'd' to compare with"):
        compare(whole, rows=['d'])
    with pytest.raises(ValueError, match="row 'a' would be compared with itself"):
        compare(whole, 'a', rows=['a', 'b'])


MARKS = re.compile(r"""
    <!--\ (?P<path>configs/\S+\.yml)
    (?:\ over\ (?P<against>.+?))?
    (?:,\ seeds\ (?P<first>\d+)-(?P<last>\d+))?
    (?:,\ rows\ (?P<rows>.+?))?
    \ -->\n\n""", re.VERBOSE)


def of_mark(mark):
    """The statistics that the mark of a page asks for."""
    rows = mark['rows'] and mark['rows'].split(' | ')
    seeds = range(int(mark['first']), int(mark['last']) + 1) if mark['first'] else None
    return statistics(Table(mark['path']), mark['against'], rows, seeds)


def test_a_mark_names_row_seeds_and_rows():
    path = 'configs/small/tables/rkan_fmnist.yml'
    whole = MARKS.match(f'<!-- {path} over RKAN, gates, seeds 3-7, rows SE | linear branch, gates -->\n\n')
    assert list(whole.groups()) == [path, 'RKAN, gates', '3', '7', 'SE | linear branch, gates']
    assert MARKS.match(f'<!-- {path} over A, gates -->\n\n')['against'] == 'A, gates'
    assert MARKS.match(f'<!-- {path}, rows A -->\n\n').group('against', 'first', 'rows') == (None, None, 'A')


def test_the_page_has_the_statistics_of_the_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = TESTS.read_text()
    marks = list(MARKS.finditer(text))
    assert len(marks) == text.count('<!-- configs/')
    for mark in marks:
        assert text.startswith(of_mark(mark), mark.end()), f'{TESTS.name} lacks what {mark[0].strip()} gives'


LINEAR, HEAD = 'linear branch', 'EfficientNet-Lite0, head at half the rate and start'
SUMMARY = {  # of a table: task, start, epochs; of its rows: seeds, and the form that they are compared with
    'finetune/tables/bccd.yml': ('blood cells, box AP', 'ImageNet', 6, {
        'RKAN': (), 'RKAN, zero start': (), 'RKAN, gates': (range(5, 25),), 'linear branch, gates': (range(5, 25),),
        'gates, no branch': (range(5, 25),), LINEAR: (range(5, 25),)}),
    'finetune/tables/bccd_12e.yml': ('the same', 'ImageNet', 12, {
        'RKAN': (), 'RKAN, zero start': (), 'RKAN, gates': (), LINEAR: ()}),
    'finetune/tables/cifar10-jpeg_tenth.yml': ('4,500 photographs, top-1', 'ImageNet', 6, {
        'RKAN': (), 'RKAN, zero start': (), 'RKAN, gates': (range(3, 8),), 'linear branch, gates': (range(3, 8),),
        'gates, no branch': (range(3, 8),), LINEAR: (range(3, 8),), HEAD: (range(3, 8),),
        'RKAN-4xL, head at half the rate and start': (range(5, 25), HEAD),
        'linear branch, 4xL, head at half the rate and start': (range(5, 25), HEAD)}),
    'small/tables/shapes.yml': ('drawn shapes, box AP', 'random', 4, {
        'RKANet-18': (), 'RKANet-18, zero start': (), 'RKANet-18, gates': ()}),
    'small/tables/rkan_tiny-imagenet-20.yml': ('Tiny ImageNet, 20 classes, top-1', 'random', 40, {
        'RKANet-18': (), 'RKANet-E-18': (), 'RKANet-18-4xL': (), 'ResNet-18, linear branch': ()}),
    'small/tables/rkan_fmnist.yml': ('Fashion-MNIST, top-1', 'random', 4, {'RKANet-18': ()}),
}


def summary():
    """The one table of the page."""
    lines = ['| task | start | epochs | form | over the plain net | 95 % interval | seeds | parameters |',
             '|---' * 8 + '|']
    for path, (*task, rows) in SUMMARY.items():
        table = Table(f'configs/{path}')
        parameters = {line['row']: int(line['parameters']) for line in table.results()}
        for row, which in rows.items():
            seeds, against = (*which, None, None)[:2]
            each, = compare(table, against, [row], seeds)
            more = parameters[row] / parameters[against or table.baseline] - 1
            form = row.removesuffix(', head at half the rate and start').removeprefix('ResNet-18, ')
            form = form.replace('RKANet', 'RKAN').replace('-18', '')
            if row == HEAD:
                form = 'none, but a head that begins and learns half as far'
            elif against:
                form += ', both with that head'
            lines.append(f'| {" | ".join(map(str, task))} | {form} | {each.difference:+.2f} | {each.low:+.2f} to '
                         f'{each.high:+.2f} | {each.seeds} | {more:+.1%} |')
            task = '', '', ''
    return '\n'.join(lines) + '\n'


def test_the_page_sums_up_the_records(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert summary() in PAGE.read_text(), f'{PAGE.name} lacks this table:\n{summary()}'


def test_the_readme_has_the_figures_of_the_tables(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables = '\n'.join(path.read_text() for path in ROOT.glob('configs/*/README.md'))
    rows = [line for line in (ROOT / 'README.md').read_text().splitlines() if '(ours' in line and ' ± ' in line]
    rows = [line for line in rows if 'fresh seeds' not in line]  # a part of the seeds of a table
    assert len(rows) >= 5
    for line in rows:
        for figure in re.findall(r'[-+]?\d+\.\d\d ± \d+\.\d\d', line):
            assert f' {figure} ' in tables, f'no table in configs/ has {figure} of {line}'
