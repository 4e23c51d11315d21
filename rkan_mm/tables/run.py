"""The runs of a table, each by `rkan-mm train` in a process of its own: the command line of tools/run_table.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from mmengine.logging import MMLogger

from rkan_mm.apis.command_line import at_least, command_line, file_to_write, positive
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.red import warn_in_red

from .record import disagreements
from .report import markdown, plot, publish
from .table import LockedError, Table, locked, tables_of


def share_of_cores(jobs: int, processes: int = 1) -> dict[str, str]:
    """Environment for one of several runs at the same time: its share of the cores, and barriers that do not spin.

    Each run may have several processes.

    Where all runs take all cores, OpenMP's threads wait for each other by spinning, and steps take many times as long.
    What the caller's environment already says stands.
    """
    if jobs < 2:
        return dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return {'OMP_NUM_THREADS': str(max(1, cores // (jobs * processes))), 'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}


def launch(table: Table, name: str, seed: int, work_dir: Path, launcher: str, gpus: int, jobs: int = 1) -> None:
    """Train one row with one seed, going on where it was left; ``jobs`` is how many runs share the machine.

    Raises:
        LockedError: another process is at it.
        PreflightError: the run failed.
    """
    python = [sys.executable, '-m']
    prefix = dict(none=python,
                  pytorch=[*python, 'torch.distributed.run', '--standalone', f'--nproc-per-node={gpus}', '-m'],
                  slurm=['srun', f'--ntasks={gpus}', f'--gpus={gpus}', *python])[launcher]
    log = work_dir / 'run.log'
    work_dir.mkdir(parents=True, exist_ok=True)
    with locked(work_dir, wait=False) as lock:
        table.begin(name, work_dir)
        command = [*prefix, 'rkan_mm', 'train', table.rows[name]['config'], '--work-dir', str(work_dir),
                   '--launcher', launcher, *(['--resume'] if (work_dir / 'last_checkpoint').exists() else []),
                   *(['--test'] if table.test else []), '--cfg-options', *table.options(name, seed),
                   f'wanted_metrics=[{",".join((table.metric, *table.others))}]']
        share = share_of_cores(jobs, gpus if launcher == 'pytorch' else 1)
        with log.open('w') as file:  # the run has the lock, too: it may live for longer than this process
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=share,
                                  pass_fds=(lock,)).returncode
    if code:
        end = '\n  '.join(log.read_text(errors='replace').splitlines()[-3:])
        raise PreflightError(f'{name}, seed {seed}: exit code {code}; {log} ends with\n  {end}')


def run_table(argv: Sequence[str] | None = None) -> None:
    """Run what a table lacks and collect it; ``argv`` is the command line of tools/run_table.py.

    Raises:
        PreflightError: the table cannot be read, no row matches, or runs failed; the others are in the record then.
    """
    parser = command_line('Train the rows of a table over seeds; what is done is not done again',
                          'configs/ckan/tables/ckan_fmnist.yml --rows "CNN*" --jobs 2')
    parser.add_argument('table', help='yaml file, e.g. configs/ckan/tables/ckan_fmnist.yml')
    parser.add_argument('--rows', nargs='+', default=['*'], metavar='PATTERN', help='names of rows, with wildcards')
    parser.add_argument('--seeds', nargs='+', type=at_least(0), help='instead of those of the table')
    parser.add_argument('--jobs', type=positive, default=1, help='runs at a time, each on its share of the cores')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--gpus', type=positive, default=1, help='for a run, with a launcher')
    parser.add_argument('--collect', action='store_true', help='run nothing, only write the tables and the plot')
    parser.add_argument('--record', type=file_to_write,
                        help='csv file of the runs (default: logs/<table>.csv of the topic)')
    args = parser.parse_args(argv)
    table = Table(args.table, args.record)
    if args.record and Path(args.record).suffix != '.csv':
        raise PreflightError(f'--record {args.record!r} must end in .csv: beside it come a .md and a .png.')
    tables = [] if args.record else tables_of(table.path.parent)
    wanted = table.runs(args.rows, args.seeds)
    if not wanted:
        raise PreflightError(f'No row matches {" ".join(args.rows)}; there are {", ".join(table.rows)}.')
    for change in table.changed():
        warn_in_red(change)
    done = {(line['row'], int(line['seed'])) for line in table.results()}
    for other in tables:  # whose records are read at the end
        other.results()
    failures, logger = [], MMLogger.get_instance('rkan_mm', log_level='INFO')
    if not args.collect:
        with ThreadPoolExecutor(args.jobs) as pool:
            try:
                futures = {}
                for name, seed in wanted:
                    if (name, seed) not in done:
                        folder = table.folder(name, seed)
                        future = pool.submit(launch, table, name, seed, folder, args.launcher, args.gpus,
                                             args.jobs)
                        futures[future] = name, seed, folder
                for future in as_completed(futures):
                    name, seed, folder = futures[future]
                    try:
                        future.result()
                        table.add(name, seed, folder)
                    except LockedError as error:
                        logger.info(f'{name}, seed {seed}: left to the other process ({error})')
                    except (PreflightError, OSError) as error:  # said at once: a table may be stopped before its end
                        failures.append(str(error))
                        logger.error(f'failed: {error}')
                    else:
                        logger.info(f'{name}, seed {seed}: done')
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)  # or it would begin all the others
                raise
    table.record.parent.mkdir(parents=True, exist_ok=True)
    with locked(table.record.parent):  # other processes may write the pages of the topic
        table.record.with_suffix('.md').write_text(markdown(table))
        if table.results():
            plot(table, table.record.with_suffix('.png'))
        if not args.record:
            publish(tables)
    logger.info(f'{table.record.with_suffix(".md")}:\n{markdown(table)}')
    for line in disagreements(table.results(), table.baseline):
        warn_in_red(line)
    if failures:
        raise PreflightError('\n'.join(failures))
