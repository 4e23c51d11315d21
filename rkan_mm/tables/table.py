"""A table of configs over seeds, and the record of what its runs came to."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rkan_mm.apis.configs import find_config, read_config
from rkan_mm.preflight import PreflightError

from .description import PARTS, content_of, files_of, folder_of, read
from .record import read_record

FIELDS = ('row', 'seed', 'config', 'epochs', 'last', 'best', 'best_epoch', 'test', 'seconds_per_epoch',
          'peak_memory_mib', 'parameters', 'device', 'torch', 'curve', 'others', 'threads', 'data', 'other_data',
          'commit', 'options', 'metrics', 'recipe')
OF_RECIPE = ('model', 'data_preprocessor', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader',
             'val_dataloader', 'val_evaluator', 'test_dataloader', 'test_evaluator', 'custom_hooks', 'load_from')
"""Parts of a config on which its figures depend."""

OF_MACHINE = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor', 'data_root', 'backend_args')
"""What within them is of the machine alone."""


class Table:
    """A table of experiments, as a yaml file describes it.

    ``title``, ``metric`` (name of a validation metric), ``seeds``, and ``rows``: each a ``name`` and a ``config`` (a
    path, or the name of one of ours), and where needed ``published`` (the paper's figure), ``seeds`` of its own,
    ``options`` for ``--cfg-options``, and ``parameters``, to be shown before a run has counted them.
    In options, ``{seed}`` is the seed of the run.
    With ``test: true`` the last weights are tested, and validation is on other data. ``others`` are metrics of which
    only the last value is wanted, ``labels`` are names for them, ``scale`` is a factor (100 for a share). ``baseline``
    names the row that the others are compared with, seed by seed. ``macs`` of a row, for inputs of the table's
    ``shape``, are shown; ``collection`` and ``machine`` enter the metafile, and so do a row's ``results``, which are of
    other commands. ``options`` of the table are those of each row that does not give them itself.
    ``_base_`` names a table beside it, of which all is taken that this one does not give. Where that is the rows,
    ``configs`` says which config stands in the place of which, and ``without`` lists the rows that are left out.

    Args:
        path: the yaml file.
        record: csv file with a line for every finished run; those in it are not run again. Default: ``logs/<name>.csv``
            beside the table's folder ``tables``.

    Raises:
        PreflightError: there is no such file, it is no yaml, or it has no such entries.
    """

    def __init__(self, path: str | Path, record: str | Path | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise PreflightError(f'Table {str(path)!r} does not exist; there are '
                                 f'{", ".join(map(str, files_of(path.parent))) or "none beside it"}.')
        content: Any = read(path)
        self.path, self.name = path, path.stem
        self.title, self.metric, self.seeds = content['title'], content['metric'], content['seeds']
        self.test, self.others = content.get('test', False), content.get('others') or []
        self.labels, self.scale = content.get('labels', {}), content.get('scale', 1)
        self.baseline, self.shape = content.get('baseline'), content.get('shape')
        self.collection, self.machine = content.get('collection', ''), content.get('machine', '')
        self.rows = {row['name']: row for row in content['rows']}
        for name, row in self.rows.items():
            if options := {**_flat(content.get('options', {})), **_flat(row.get('options', {}))}:
                row['options'] = options
            try:
                row['config'] = find_config(row['config'])
            except PreflightError as error:
                raise PreflightError(f'Table {str(path)!r}, row {name!r}: {error}') from error
        if self.baseline and self.baseline not in self.rows:
            raise PreflightError(f'Table {str(path)!r}: no row {self.baseline!r} for a baseline; there are '
                                 f'{", ".join(self.rows)}.')
        # the folder with README.md and metafile.yml; tables/ and logs/ stand in it
        self.topic = path.parent.parent if path.parent.name == 'tables' else path.parent
        self.record = Path(record) if record else self.topic / 'logs' / f'{self.name}.csv'

    def changed(self) -> Iterator[str]:
        """What of each row has been changed since it was run, as a sentence."""
        recipe_of, told = functools.cache(lambda config: _hash(_recipe(config))), set()  # many rows have one config
        for line in self.results():
            name, row = line['row'], self.rows[line['row']]
            if name in told:
                continue
            if Path(line['config']).stem != Path(row['config']).stem:
                change = (f'{self.record} has figures of {Path(line["config"]).stem}, the row is of '
                          f'{Path(row["config"]).stem} now')
            elif line['options'] and line['options'] != self._options_of(name):
                change = (f'{self.record} has figures with options {line["options"]}, the row has '
                          f'{self._options_of(name)} now')
            elif line['recipe'] and recipe_of(row['config']) not in ('', line['recipe']):
                change = f'{row["config"]} has been changed since it gave the figures in {self.record}'
            else:
                continue
            told.add(name)
            yield f'{name}: {change}. To run it anew, take its lines out of the record.'

    def folder(self, name: str, seed: int) -> Path:
        """Where a run is trained."""
        return Path('work_dirs/tables') / self.name / folder_of(name) / f'seed{seed}'

    def begin(self, name: str, work_dir: Path) -> None:
        """Note in a run's folder of what row it is, so that it is gone on with as that row alone.

        One that has not come to a checkpoint begins anew, and as what the row is now.

        Raises:
            PreflightError: the run there was begun with another config, also of the same name, or other options.
        """
        note, config = work_dir / NOTE, self.rows[name]['config']
        mine = dict(config=Path(config).stem, options=self.rows[name].get('options', {}))
        mine = json.loads(json.dumps(mine, default=str)) | dict(recipe=_recipe(config))
        before = mine | (_noted(work_dir) if (work_dir / 'last_checkpoint').exists() else {})
        differ = [f'{key}={before[key]!r} (now {mine[key]!r})' for key in ('config', 'options')
                  if before[key] != mine[key]]
        if not differ and mine['recipe'] and before['recipe']:
            parts = {**before['recipe'], **mine['recipe']}
            differ = [f'another {part}' for part in parts if before['recipe'].get(part) != mine['recipe'].get(part)]
        if differ:
            raise PreflightError(f'{name}: the run in {work_dir} was begun with {", ".join(differ)}, and would be gone '
                                 f'on with. To run it anew, remove that folder; to go on all the same, remove {NOTE} '
                                 'there.')
        work_dir.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(before, indent=1))

    def _options_of(self, name: str) -> str:
        return json.dumps(self.rows[name].get('options', {}), sort_keys=True)

    def options(self, name: str, seed: int) -> list[str]:
        """What ``--cfg-options`` gets for a run; ``{seed}`` in a value is the seed."""
        options = self.rows[name].get('options', {})
        return [f'randomness.seed={seed}',
                *(f'{key}={str(value).replace("{seed}", str(seed))}' for key, value in options.items())]

    def runs(self, patterns: Sequence[str] = ('*',), seeds: Sequence[int] | None = None) -> list[tuple[str, int]]:
        """(row, seed) of the runs that are asked for, whether they are done or not.

        All rows of the first seed come first, so that a table that was cut short has whole seeds to compare.
        """
        wanted = {name: row.get('seeds', self.seeds) if seeds is None else seeds for name, row in self.rows.items()
                  if any(name == each or fnmatch(name, each) for each in patterns)}
        order = list(dict.fromkeys(seed for each in wanted.values() for seed in each))
        return [(name, seed) for seed in order for name, each in wanted.items() if seed in each]

    def results(self) -> list[dict]:
        """Lines of the record, in the order of the rows, with the figures of ``others`` as the table names them.

        Raises:
            PreflightError: see `read_record`; a line has no test, or figures of other metrics than the table shows.
        """
        return self._sorted(self._with_mine(line) for line in self._lines() if line['row'] in self.rows)

    def _with_mine(self, line: dict) -> dict:
        if self.test and not line['test']:
            raise PreflightError(f'{self.record}: {line["row"]}, seed {line["seed"]} was not tested, and the table '
                                 'says test: true. Take the line out of the record: where its run is still there, it '
                                 'is tested and collected anew.')
        if not line['metrics'] and not self.others:
            return line
        figures = line['others'].split()
        metric, *others = json.loads(line['metrics']) if line['metrics'] else (self.metric, *self.others)
        if len(others) == len(figures) and metric == self.metric and {*self.others} <= {*others}:
            named = dict(zip(others, figures, strict=True))
            return line | dict(others=' '.join(named[name] for name in self.others))
        has = ', '.join((metric, *others)) if line['metrics'] else f'{len(figures)} other metrics'
        raise PreflightError(f'{self.record}: the figures of {line["row"]}, seed {line["seed"]} are of {has}; the '
                             f'table wants {", ".join((self.metric, *self.others))}. Take the line out of the record: '
                             'where its run is still there, it is collected anew.')

    def _lines(self) -> list[dict]:
        return read_record(self.record, FIELDS) if self.record.exists() else []

    def _sorted(self, lines: Iterable[dict]) -> list[dict]:
        """In the order of the rows, and then of the seeds; those of no row come last."""
        order = list(self.rows)
        return sorted(lines, key=lambda line: (
            order.index(line['row']) if line['row'] in order else len(order), int(line['seed'])))

    def add(self, name: str, seed: int, work_dir: Path) -> None:
        """Put a finished run into the record."""
        summary = json.loads((work_dir / 'summary.json').read_text())
        for name_of_metric in (self.metric, *self.others):
            if name_of_metric not in summary['metrics']:
                raise PreflightError(f'{work_dir}: no metric {name_of_metric!r}; there are '
                                     f'{", ".join(summary["metrics"])}.')
        if self.test and self.metric not in summary.get('test', {}):
            raise PreflightError(f'{work_dir}: the test gave no {self.metric}, but '
                                 f'{", ".join(summary.get("test", {})) or "nothing, as where nothing is found"}.')
        metric = summary['metrics'][self.metric]
        line = dict(
            row=name, seed=seed, config=self.rows[name]['config'], epochs=summary['epochs'],
            last=f'{metric["last"]:.4f}', best=f'{metric["best"]:.4f}', best_epoch=metric['best_epoch'],
            test=f'{summary["test"][self.metric]:.4f}' if self.test else '',
            seconds_per_epoch=f'{summary["seconds_per_epoch"]:.2f}' if summary['seconds_per_epoch'] else '',
            peak_memory_mib=f'{summary["peak_memory_mib"]:.0f}', parameters=summary['parameters'],
            device=' + '.join(summary.get('devices') or [f'{summary["processes"]} x {summary["device"]}']),
            torch=summary['versions']['torch'],
            curve=' '.join(f'{value:.4f}' for value in metric['curve']),
            others=' '.join(f'{summary["metrics"][other]["last"]:.4f}' for other in self.others),
            threads='+'.join(summary.get('all_threads') or [str(summary.get('threads', ''))]),
            data=' '.join(f'{split}:{"+".join(prints)}' for split, prints in summary.get('data', {}).items()),
            other_data=' '.join(summary.get('other_data', [])), commit='+'.join(summary.get('commits', [])),
            options=self._options_of(name), metrics=json.dumps([self.metric, *self.others]),
            recipe=_hash(_noted(work_dir).get('recipe')))
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.record.parent):  # other processes may run other rows
            done = {(each['row'], int(each['seed'])): each for each in self._lines()}
            done[name, seed] = line
            partial = self.record.with_suffix(f'.{os.getpid()}.partial')
            with partial.open('w', newline='') as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
                writer.writeheader()
                writer.writerows(self._sorted(done.values()))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.record)


class LockedError(PreflightError):
    """Another process is at it."""


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[int]:
    """Hold the folder's lock; a child process that inherits the descriptor holds it, too.

    On disks without locks nobody is kept out.

    Raises:
        LockedError: another process holds it, and is not to be waited for.
    """
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if isinstance(error, BlockingIOError):
            os.close(file)
            raise LockedError(f'Another process is training in {folder}: wait for its end, or end it.') from error
    try:
        yield file
    finally:
        os.close(file)


NOTE = 'row.json'
"""In the folder of a run: what it was begun with."""


def _noted(work_dir: Path) -> dict:
    try:
        return json.loads((work_dir / NOTE).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _recipe(config: str) -> dict[str, str]:
    """A hash of each part of a config on which figures depend; {} where it cannot be read, as the run will say."""
    try:
        cfg = read_config(config).to_dict()
    except Exception:
        return {}
    root = cfg.get('data_root') or ''
    return {part: _hash(_of_any_machine(cfg[part], str(root))) for part in OF_RECIPE if part in cfg}


def _of_any_machine(node: Any, root: str) -> Any:
    if isinstance(node, dict):
        return {str(key): _of_any_machine(value, root) for key, value in node.items() if key not in OF_MACHINE}
    if isinstance(node, (list, tuple)):
        return [_of_any_machine(value, root) for value in node]
    return node.removeprefix(root) if isinstance(node, str) else node


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=lambda value: getattr(value, '__name__', type(value).__name__))
    return hashlib.sha256(text.encode()).hexdigest()[:12] if content else ''


def _flat(options: dict, prefix: str = '') -> dict[str, Any]:
    """Options by their path in the config: the command line takes no dicts."""
    found = {}
    for key, value in options.items():
        found |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) and value else {f'{prefix}{key}': value}
    return found


def tables_of(folder: Path) -> list[Table]:
    """The tables of a folder; its yaml files that have no part of one are passed over."""
    return [Table(path) for path in files_of(folder) if {*PARTS, '_base_'} & set(content_of(path))]
