"""What the yaml file of a table says, checked, with what it takes from its ``_base_``."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import yaml

from rkan_mm.preflight import PreflightError

PARTS = ('title', 'metric', 'seeds', 'rows')
OTHER_PARTS = ('test', 'others', 'labels', 'scale', 'baseline', 'shape', 'collection', 'machine', 'options')
ENTRIES = ('name', 'config', 'published', 'seeds', 'options', 'parameters', 'macs', 'results')
"""What a row may have."""


def folder_of(name: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r'\W+', '-', name).strip('-').lower()


def files_of(folder: Path) -> list[Path]:
    """The yaml files of a folder."""
    return sorted(path for path in folder.glob('*') if path.suffix in ('.yml', '.yaml'))


def content_of(path: Path) -> dict:
    """Of a yaml file, unchecked; {} where it holds no dict. `PreflightError` where it is no yaml."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PreflightError(f'Table {str(path)!r} is no yaml: {" ".join(str(error).split())}') from error
    return content if isinstance(content, dict) else {}


def _inherited(path: Path, heirs: tuple[Path, ...]) -> dict:
    """The content of a table's file with what it takes from its ``_base_``; ``heirs`` take from this one."""
    content = content_of(path)
    idle = [key for key in ('configs', 'without') if key in content]
    if idle and ('_base_' not in content or 'rows' in content):
        raise PreflightError(f'Table {str(path)!r}: {idle[0]} is of the rows of another table, which _base_ names.')
    if '_base_' not in content:
        return content
    where, base = f'Table {str(path)!r}', path.parent / str(content.pop('_base_'))
    if not base.is_file() or base.resolve() in (heirs := (*heirs, path.resolve())):
        raise PreflightError(f'{where}: _base_ names {str(base)!r}, which is no other table.')
    theirs = read(base, heirs)
    configs, without = content.pop('configs', {}), content.pop('without', [])
    if not isinstance(configs, dict) or not isinstance(without, list):
        raise PreflightError(f'{where}: configs are written as THERE: HERE, and without is a list of rows.')
    for key, named, there in (('configs', configs, [row['config'] for row in theirs['rows']]),
                              ('without', without, [row['name'] for row in theirs['rows']])):
        if unknown := [each for each in named if each not in there]:
            raise PreflightError(f'{where}: {key} names {unknown[0]!r}, which no row of {str(base)!r} has; there are '
                                 f'{", ".join(dict.fromkeys(there))}.')
    of_other_models = ('parameters', 'macs', 'published', 'results')
    rows = [{**{key: value for key, value in row.items() if row['config'] not in configs or key not in of_other_models},
             'config': configs.get(row['config'], row['config'])}
            for row in theirs['rows'] if row['name'] not in without]
    return {**theirs, 'rows': rows, **content}


def read(path: Path, heirs: tuple[Path, ...] = ()) -> dict:
    """The content of a table's file; `PreflightError` where it is not what `Table` describes."""
    where, content = f'Table {str(path)!r}', _inherited(path, heirs)
    missing = [key for key in PARTS if key not in content]
    if missing:
        raise PreflightError(f'{where} has no {", ".join(missing)}.')
    rows, names = content['rows'], []
    for key in [key for key in content if key not in (*PARTS, *OTHER_PARTS)]:
        if near := difflib.get_close_matches(str(key), OTHER_PARTS, n=1, cutoff=0.8):
            raise PreflightError(f'{where}: {key!r} is nothing that is read; is {near[0]} meant?')
    texts = dict(metric=[content['metric']], baseline=[content.get('baseline') or ''],
                 others=content.get('others') or [])
    for key, given in texts.items():
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise PreflightError(f'{where}: {key} is ' + ('a list of names of metrics, such as [coco/segm_mAP]'
                                 if key == 'others' else 'a name') + f', not {content[key]!r}.')
    if not isinstance(content.get('labels', {}), dict):
        raise PreflightError(f'{where}: labels are written as METRIC: NAME.')
    if not isinstance(content.get('scale', 1), (int, float)):
        raise PreflightError(f'{where}: scale is a number, not {content["scale"]!r}.')
    if not isinstance(rows, list) or not rows:
        raise PreflightError(f'{where}: rows are a list of a name and a config each, such as '
                             '[{name: A, config: a.py}].')
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ('name', 'config')):
            raise PreflightError(f'{where}, row {i}: it has no name and config, or they are no text.')
        if row['name'] in names:
            raise PreflightError(f'{where}: two rows are called {row["name"]!r}.')
        if alike := [name for name in names if folder_of(name) == folder_of(row['name'])]:
            raise PreflightError(f'{where}: rows {alike[0]!r} and {row["name"]!r} would be trained in one folder, '
                                 f'{folder_of(row["name"])!r}: let their names differ in letters or digits.')
        names.append(row['name'])
        if unread := [key for key in row if key not in ENTRIES]:
            raise PreflightError(f'{where}, row {row["name"]!r}: {", ".join(map(str, unread))} would change nothing; a '
                                 f'row has {", ".join(ENTRIES)}.')
    for who, part in (('', content), *((f', row {row["name"]!r}', row) for row in rows)):
        if not isinstance(part.get('options', {}), dict):
            raise PreflightError(f'{where}{who}: options are written as KEY: VALUE.')
    for who, seeds in (('', content['seeds']), *((f', row {row["name"]!r}', row.get('seeds', [])) for row in rows)):
        if not isinstance(seeds, list) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise PreflightError(f'{where}{who}: seeds are a list of whole numbers, such as [0, 1, 2], not {seeds!r}.')
        if len(set(seeds)) < len(seeds):
            raise PreflightError(f'{where}{who}: a seed is named twice in {seeds}.')
    return content
