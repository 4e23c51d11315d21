"""How tables of runs are shown: as markdown, as a plot, in README.md and metafile.yml of their topic."""

from __future__ import annotations

import os
import re
import statistics
import textwrap
from collections.abc import Collection, Sequence
from math import isnan, nan
from pathlib import Path

import yaml

from .record import machine_of
from .table import Table

MARK = '  # Written by tools/run_table.py from the tables and their records:\n'


def figures(table: Table) -> dict[str, str]:
    """Column of the record -> what it is, for the results that a table shows."""
    if table.others:
        names = {'last': table.metric, **{str(i): name for i, name in enumerate(table.others)}}
        labels = {key: table.labels.get(name, name) for key, name in names.items()}
        if table.test:
            return {'test': f'{labels["last"]}, test', **{key: f'{name}, validation' for key, name in labels.items()}}
        return labels
    if table.test:
        return {'last': 'validation, last epoch', 'test': 'test, last epoch'}
    return {'last': 'last epoch', 'best': 'best epoch'}


def markdown(table: Table) -> str:
    """Mean and spread (standard deviation over seeds) of every row, as a table.

    Differences to the ``baseline`` are of runs with the same seed. Seconds are those of the fastest seed, and memory
    that of the largest: what else a machine does can only add to them. Both are of the machine and the threads of the
    first seed, which stand beside them where rows differ in them. Runs on other data than their config was made for are
    counted beside the seeds.
    """
    keys = figures(table)
    with_macs = any('macs' in row for row in table.rows.values())
    with_published = any('published' in row for row in table.rows.values())
    heads = [table.title, 'parameters', *(['MACs'] if with_macs else []),
             *(['published (paper)'] if with_published else []), *(f'{label} (ours)' for label in keys.values()),
             *([f'over {table.baseline}, paired'] if table.baseline else []), 's/epoch', 'MiB', 'seeds']
    text = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    results = table.results()
    firsts = {line['row']: line for line in reversed(results)}
    for name, row in table.rows.items():
        lines = [line for line in results if line['row'] == name]
        parameters = next((line['parameters'] for line in lines if line['parameters']), row.get('parameters'))
        link = f'[{name}]({os.path.relpath(row["config"], table.topic)})'
        cells = [link, f'{int(parameters):,}' if parameters else '-']
        if with_macs:
            cells.append(f'{row["macs"] / 1e6:.2f} M' if 'macs' in row else '-')
        if with_published:
            cells.append(f'{row["published"]:.2f}' if 'published' in row else '-')
        cells += [spread(values(table, lines, key)) if lines else 'not run' for key in keys]
        if table.baseline:
            cells.append(paired(table, results, name))
        others = sum(bool(line['other_data']) for line in lines)
        costs = [line for line in lines if all(line[key] == lines[0][key] for key in ('device', 'threads'))]
        seconds = [float(line['seconds_per_epoch']) for line in costs if line['seconds_per_epoch']]
        memory = [float(line['peak_memory_mib']) for line in costs if line['peak_memory_mib']]
        cells += [f'{min(seconds):.1f}{_place(lines[0], firsts.values())}' if seconds else '-',
                  f'{max(memory):.0f}' if memory else '-',
                  f'{len(lines)}{f" ({others} on other data)" if others else ""}']
        text.append(f'| {" | ".join(cells)} |')
    return '\n'.join(text) + '\n'


def _place(line: dict, others: Collection[dict]) -> str:
    """Where a run was, in brackets, as far as runs differ in it; '' where they do not."""
    found = [name for of in (machine_of, _threads) if (name := of(line)) and len({*map(of, others)} - {''}) > 1]
    return f' ({", ".join(found)})' if found else ''


def _threads(line: dict) -> str:
    return f'threads: {line["threads"]}' if line['threads'] else ''


def paired(table: Table, results: Sequence[dict], name: str) -> str:
    """Difference of a row to the baseline, mean and spread over the seeds that both have."""
    def by_seed(row: str) -> dict[str, float]:
        lines = [line for line in results if line['row'] == row]
        seeds = [line['seed'] for line in lines]
        return dict(zip(seeds, values(table, lines, 'test' if table.test else 'last'), strict=True))

    ours, theirs = by_seed(name), by_seed(table.baseline)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences or name == table.baseline:
        return '-'
    return spread(differences, '+.2f') + (f' ({len(differences)} of {len(ours)} seeds)' if len(differences) < len(ours)
                                          else '')


def values(table: Table, lines: Sequence[dict], key: str) -> list[float]:
    """A column of the record, scaled; a digit as ``key`` means one of the other metrics.

    The -1 of COCO's and LVIS's AP and AR, for sizes of which the data has no objects, is nan.
    """
    place = int(key) if key.isdigit() else None
    name = table.metric if place is None else table.others[place]
    found = (float((line[key] if place is None else line['others'].split()[place]) or nan) for line in lines)
    return [nan if value == -1 and re.search('A[PR]', name) else table.scale * value for value in found]


def spread(numbers: Sequence[float], form: str = '.2f') -> str:
    """``mean ± standard deviation``, or the number of a single run; ``nan`` where one of them is none."""
    if any(map(isnan, numbers)):
        return 'nan'
    mean = format(statistics.mean(numbers), form)
    return f'{mean} ± {statistics.stdev(numbers):.2f}' if len(numbers) > 1 else mean


def plot(table: Table, path: str | Path) -> None:
    """Every run as a dot and a bar for the first two figures, the published ones as crosses."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    lines, names = table.results(), list(table.rows)
    labels = list(figures(table).items())[:2]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.32 * len(names)), layout='constrained')
    rows = [names.index(line['row']) for line in lines]
    for (key, label), marker in zip(labels if table.others else labels[::-1], 'o|', strict=True):
        axes.plot(values(table, lines, key), rows, marker, alpha=0.7, label=f'{label}, a seed each')
    published = {i: row['published'] for i, row in enumerate(table.rows.values()) if 'published' in row}
    if published:
        axes.plot(list(published.values()), list(published), 'kx', label='published')
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(', '.join(label for _, label in labels) if table.others else table.metric)
    figure.suptitle(table.title, fontsize='large', wrap=True)  # over all: beside long names the axes are narrow
    axes.grid(axis='x', alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3, fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def models(tables: Sequence[Table]) -> list[dict]:
    """Entries of a metafile: one for each config, with a result for each row that runs it."""
    entries: dict[str, dict] = {}
    for table in tables:
        results = table.results()
        for name, row in table.rows.items():
            entry = entries.setdefault(row['config'], {
                'Name': Path(row['config']).stem, 'In Collection': table.collection, 'Config': row['config'],
                'Weights': None, 'Metadata': {}, 'Results': []})
            if not entry['Metadata'] or ('options' not in row and 'parameters' in row):
                entry['Metadata'] = {'Parameters': row.get('parameters')}
            entry['Results'] += row.get('results', [])
            common = dict(Task='Object Detection' if table.metric.startswith('coco/') else 'Image Classification',
                          Dataset=table.title, Row=name)
            if 'published' in row:
                entry['Results'].append(dict(
                    common, Metrics={'best epoch': float(row['published'])}, Source='paper'))
            lines = [line for line in results if line['row'] == name]
            if lines:
                means = {label: round(statistics.fmean(values(table, lines, key)), 2)
                         for key, label in figures(table).items()}
                machines = ', '.join(dict.fromkeys(filter(None, map(machine_of, lines))))
                entry['Results'].append(dict(
                    common, Metrics=means, Source='ours',
                    Command=f'python tools/run_table.py {table.path} --rows "{name}"',
                    Seeds=[int(line['seed']) for line in lines], Machine=table.machine or machines,
                    Record=str(table.record)))
    return list(entries.values())


def publish(tables: Sequence[Table]) -> None:
    """Put all tables of a topic into its README.md, behind marks ``<!-- name -->``, and into its metafile.yml."""
    topic = tables[0].topic
    page, metafile = topic / 'README.md', topic / 'metafile.yml'
    if page.is_file():
        text = page.read_text()
        for table in tables:
            before, mark, after = text.partition(f'<!-- {table.name} -->\n')
            if mark:
                after = after.lstrip('\n')
                rest = after.partition('\n\n')[2] if after.startswith('|') else after
                text = f'{before}{mark}\n{markdown(table)}' + (f'\n{rest}' if rest else '')
        page.write_text(text)
    if metafile.is_file():
        entries = yaml.safe_dump(models(tables), sort_keys=False, allow_unicode=True, width=116)
        metafile.write_text(metafile.read_text().partition(MARK)[0] + MARK + textwrap.indent(entries, '  '))
