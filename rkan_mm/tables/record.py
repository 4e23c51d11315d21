"""The record of a table's runs, read back: each run once and whole, and of one row by the same training and data."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rkan_mm.preflight import PreflightError

NEEDED = ('row', 'seed', 'config', 'last')
NUMBERS = ('last', 'best', 'test')
OTHER_NUMBERS = ('seconds_per_epoch', 'peak_memory_mib')
MERGED = ('<<<<<<<', '=======', '>>>>>>>')


def read_record(path: Path, fields: Sequence[str]) -> list[dict]:
    """Lines of a record, of whatever rows; columns that an older record lacks are empty.

    Raises:
        PreflightError: it is no record, a line is not whole or no number, or a run stands in it twice.
    """
    with path.open(newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file)
        if missing := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
            raise PreflightError(f'{path} is no record of runs, with commas between its columns: it has no column '
                                 f'{", ".join(missing)}.')
        lines: dict[tuple[str, int], dict] = {}
        for line in reader:
            where = f'{path}, line {reader.line_num}'
            if str(line['row']).startswith(MERGED):
                raise PreflightError(f'{where}: {line["row"][:7]} is of a merge that git could not do: do it by hand.')
            if not _is_whole(line):
                raise PreflightError(f'{where}, of {line["row"]}, is torn: take it out, and the run that it is of will '
                                     'be collected, or made, anew.')
            key = line['row'], int(line['seed'])
            if key in lines:
                raise PreflightError(f'{where}: seed {key[1]} of {key[0]} stands there twice, and would count twice: '
                                     'take one out.')
            lines[key] = dict.fromkeys(fields, '') | line
    return list(lines.values())


def _is_whole(line: dict) -> bool:
    parameters = line.get('parameters')
    if None in line or None in line.values() or not line['seed'].isdecimal() or (
            parameters and not parameters.isdecimal()):
        return False
    try:
        numbers = [float(line[name]) for name in NUMBERS if line.get(name)]
        for text in (*(line[name] for name in OTHER_NUMBERS if line.get(name)), *line.get('others', '').split()):
            float(text)
        json.loads(line.get('metrics') or '[]')
        return bool(numbers) and not any(map(math.isinf, numbers))
    except ValueError:
        return False


def machine_of(line: dict) -> str:
    """The name of the card or processor, of all where there were several; '' in an older record, which named none."""
    return ' + '.join(name for name in re.findall(r'\d+ x (.*?)(?= \+ \d|$)', line['device']) if name != 'CPU')


def _training_of(line: dict) -> dict[str, str]:
    """What all runs of a row have in common; '' where it is not known, or the row has it of each seed."""
    data = '' if '{seed}' in line['options'] else ' '.join(
        part for part in line['data'].split() if part.startswith('train:'))
    return dict(epochs=line['epochs'], parameters=line['parameters'], recipe=line['recipe'], data=data,
                options=line['options'],
                processes='+'.join(dict.fromkeys(re.findall(r'(\d+) x ', line['device']))))


def disagreements(lines: Sequence[dict], baseline: str | None = None) -> Iterator[str]:
    """What of the runs of a record does not go together, or is no number, in sentences.

    Args:
        lines: of the record.
        baseline: the row that the others are compared with, seed by seed.
    """
    for row in dict.fromkeys(line['row'] for line in lines):
        mine = [line for line in lines if line['row'] == row]
        for name in ('epochs', 'parameters', 'processes', 'recipe', 'options', 'data'):
            found = sorted({_training_of(line)[name] for line in mine} - {''})
            if len(found) > 1:
                named = dict(recipe='states of its config', options='sets of options', data='sets of training data')
                which = f'{len(found)} {named[name]}' if name in named else f'{" and ".join(found)} {name}'
                told = f' ({", ".join(found)})' if name == 'data' else ''
                yield f'{row}: its runs are of {which}{told}, and its mean is of different trainings.'
        theirs = {line['seed']: machine_of(line) for line in lines if line['row'] == baseline}
        apart = {line['seed']: machine_of(line) for line in mine
                 if machine_of(line) and theirs.get(line['seed']) not in ('', None, machine_of(line))}
        if apart:
            seed, name = next(iter(apart.items()))
            yield (f'{row}: seed {", ".join(apart)} ran on another machine than that of {baseline} ({name}, not '
                   f'{theirs[seed]}): their differences are of the machines, too.')
        if seeds := [line['seed'] for line in mine if any(math.isnan(float(line[name])) for name in NUMBERS
                                                         if line[name])]:
            yield f'{row}: figures of seed {", ".join(seeds)} are no number, and so is its mean.'
    for split in ('val', 'test'):
        prints = {part for line in lines for part in line['data'].split() if part.startswith(f'{split}:')}
        if len(prints) > 1:
            who = list(dict.fromkeys(line['row'] for line in lines
                                     if not {*line['data'].split()}.isdisjoint(sorted(prints)[1:])))
            yield (f'The {split} data of the runs are not the same ({", ".join(sorted(prints))}, as in {who[0]}): '
                   'their figures do not compare.')
