"""All that is to be checked and measured on a GPU, in one command with limits of time."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import torch
from rich.console import Console
from rich.table import Table

from rkan_mm.apis.command_line import command_line, file_to_write
from rkan_mm.engine.provenance import commit
from rkan_mm.preflight import PreflightError

from .gpu_steps import GOALS, ROOT, TESTS, Step, steps

MINUTES = 8
COMPILERS = 'torch', 'triton'  # whose versions make other kernels
TAIL = 3000  # characters of a step's output that are kept
PRCTL, PR_SET_PDEATHSIG = ctypes.CDLL(None).prctl if sys.platform == 'linux' else None, 1


def machine(dry: bool) -> dict:
    """Card, driver and versions; the environment may name a revision (RKAN_MM_REVISION)."""
    found = dict(python=platform.python_version(), torch=torch.__version__, cuda=torch.version.cuda, dry_run=dry)
    with contextlib.suppress(ImportError):
        import triton
        found['triton'] = triton.__version__
    with contextlib.suppress(OSError):
        done = subprocess.run(('nvidia-smi', '--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit',
                               '--format=csv,noheader'), capture_output=True, text=True)
        found['nvidia_smi'] = done.stdout.strip() if done.returncode == 0 else None
    found['revision'] = os.environ.get('RKAN_MM_REVISION') or commit()
    found['card'] = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return found


def has_ops() -> bool:
    """Whether mmcv has its compiled ops; asked in another process, since they take memory."""
    return subprocess.run([sys.executable, '-c', 'import mmcv._ext'], capture_output=True).returncode == 0


def _end_with_parent() -> None:
    """Of a step: a command that is stopped would leave it on the GPU, beside what the next one measures."""
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(step: Step, seconds: float, out: Path) -> dict:
    """Run a step for at most so long, with all processes that it starts; what it gave and how it ended."""
    start = time.monotonic()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get('PYTHONPATH')))))
    if step.arguments[0] == 'pytest':  # a process for each core
        environment['OMP_NUM_THREADS'] = '1'
    with tempfile.TemporaryFile('w+', errors='replace') as log:
        process = subprocess.Popen(step.command(out), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                                   start_new_session=True, env=environment, preexec_fn=_end_with_parent)
        try:
            code = process.wait(seconds)
            state = 'done' if code == 0 else f'failed ({code})'
        except subprocess.TimeoutExpired:
            state = f'ended after {seconds:.0f} s'
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        text = log.read()
    fallbacks = [line for line in text.splitlines() if 'plain PyTorch' in line]
    results = _read(out)
    return dict(name=step.name, command=' '.join(step.command(out)[1:]), state=state, results=results,
                seconds=round(time.monotonic() - start, 1), **(dict(fallbacks=fallbacks) if fallbacks else {}),
                **({} if state == 'done' else dict(output=text[-TAIL:])))


def _read(out: Path) -> dict | list | None:
    """What a step has written: json, a folder with `layers.json`, or pytest's counts."""
    with contextlib.suppress(OSError, ValueError, ElementTree.ParseError):
        if out.is_dir():
            return json.loads((out / 'layers.json').read_text())
        text = out.read_text()
        if text.startswith('<?xml'):
            suite = next(ElementTree.fromstring(text).iter('testsuite'))
            counts = {name: int(suite.get(name, 0)) for name in ('tests', 'failures', 'errors', 'skipped')}
            failed = [case.get('name') for case in suite.iter('testcase')
                      if case.find('failure') is not None or case.find('error') is not None]
            return dict(counts, failed=failed)
        return json.loads(text)
    return None


def run_all(chosen: Sequence[Step], seconds: float, say: Console,
            keep: Callable[[list[dict]], object] = lambda rows: None) -> list[dict]:
    """One step after the other; those for which no time is left, or mmcv has no ops, are told as such.

    After each one ``keep`` is given all so far: whoever stops a run keeps what it has measured.
    """
    end, rows, ops = time.monotonic() + seconds, [], None
    row: dict
    with tempfile.TemporaryDirectory() as folder:
        for number, step in enumerate(chosen):
            left = end - time.monotonic()
            ops = has_ops() if ops is None and step.needs_ops else ops
            if left < 5:
                row = dict(name=step.name, state='no time left', seconds=0)
            elif step.arguments[0] == 'pytest' and not TESTS.is_dir():
                row = dict(name=step.name, state='needs a checkout', seconds=0)
            elif step.needs_ops and not ops and step.arguments[0] != 'pytest':
                row = dict(name=step.name, state="needs mmcv's compiled ops", seconds=0)
            else:
                row = run(step, min(step.seconds, left), Path(folder) / str(number))
            rows.append(row)
            keep(rows)
            say.print(f'{row["name"]}: {row["state"]}, {row["seconds"]:.0f} s')
            for line in row.get('fallbacks', []) + ([row['output']] if 'output' in row else []):
                say.print(line, markup=False, highlight=False)
    return rows


def goals(rows: list[dict]) -> list[dict]:
    """What is to be reached and what was; ``value`` is None where it was not measured."""
    results = {row['name']: row['results'] for row in rows if row.get('results')}
    found = []
    for goal in GOALS:
        value = None
        with contextlib.suppress(KeyError, IndexError, TypeError, ZeroDivisionError):
            value = goal.found(results)
        found.append(dict(measure=goal.measure, value=value, bound=goal.bound, goal=round(goal.goal, 3),
                          met=None if value is None else bool(goal.is_met(value))))
    return found


def show(record: dict, console: Console) -> None:
    """The tables: steps, then goals."""
    table = Table(title=f'{record["machine"]["card"]}, torch {record["machine"]["torch"]}')
    for column in ('step', 'state', 'seconds', 'tests'):
        table.add_column(column, justify='right' if column == 'seconds' else 'left')
    for row in record['steps']:
        counts = row.get('results') or {}
        told = '' if not isinstance(counts, dict) or 'tests' not in counts else ', '.join(
            f'{counts[name]} {name}' for name in ('tests', 'failures', 'errors', 'skipped'))
        table.add_row(row['name'], row['state'], f'{row["seconds"]:.0f}', told)
    console.print(table)
    table = Table(title='tiny sizes on a CPU: these numbers mean nothing' if record['machine']['dry_run'] else 'goals')
    for column in ('measure', 'measured', 'goal', ''):
        table.add_column(column, justify='right' if column in ('measured', 'goal') else 'left')
    words = {None: 'not measured', True: 'met', False: 'short'}
    if record['machine']['dry_run']:
        words |= {True: '', False: ''}
    for row in record['goals']:
        value = '-' if row['value'] is None else f'{row["value"]:.4g}'
        table.add_row(row['measure'], value, f'{row["bound"]} {row["goal"]:g}',
                      words[row['met']])
    console.print(table)


def steps_before(out: Path, mine: dict) -> list[dict]:
    """What another call has measured on this card by this PyTorch; those of a dry run mean nothing and are let go.

    Raises:
        PreflightError: the file is of another card or PyTorch, or no record.
    """
    if not out.is_file():
        return []
    try:
        record = json.loads(out.read_text())
        theirs, rows = {**mine, **record.get('machine', {})}, record['steps']
        for row in rows:
            row.setdefault('revision', theirs.get('revision'))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PreflightError(f'{str(out)!r} is no record of this command, or torn: name another file by --out.'
                             ) from error
    if theirs['dry_run'] and not mine['dry_run']:
        return []
    if any(theirs.get(name) != mine.get(name) for name in ('card', 'dry_run', *COMPILERS)):
        told, this = (' with '.join([each['card'], *(f'{name} {each[name]}' for name in COMPILERS if each.get(name))])
                      for each in (theirs, mine))
        raise PreflightError(f'{str(out)!r} has what was measured on {told}, this is '
                             + ('a dry run' if mine['dry_run'] else this) + ': name another file by --out.')
    return rows


def together(before: list[dict], rows: list[dict]) -> list[dict]:
    """The steps of a record: what another call has measured stays until this one has measured it anew."""
    ran = {row['name'] for row in rows if 'command' in row and not row['state'].startswith('ended')}
    kept = [row for row in before if row['name'] not in ran]
    return [*kept, *(row for row in rows if row['name'] not in {row['name'] for row in kept})]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of tools/check_gpu.py; exit code 1 if a step has failed."""
    names = [step.name for step in steps()]
    parser = command_line(__doc__, "'tests of the kernels' inference --out work_dirs/check_gpu.json")
    parser.add_argument('step', nargs='*', help=f'of: {"; ".join(names)}; all, in this order')
    parser.add_argument('--dry-run', action='store_true', help='tiny nets and sizes on the CPU, tests left out')
    parser.add_argument('--minutes', type=float, default=MINUTES, help='for all steps together')
    parser.add_argument('--out', type=file_to_write, default='work_dirs/check_gpu.json',
                        help='json file; the steps that another call has written there stay')
    args = parser.parse_args(argv)
    if unknown := set(args.step) - set(names):
        parser.error(f'no step {", ".join(sorted(unknown))}; there are {", ".join(names)}')
    if not args.dry_run and not torch.cuda.is_available():
        parser.error(f'torch {torch.__version__} finds no GPU; --dry-run shows on a CPU that the script works')
    console = Console(width=120)
    chosen = [step for step in steps(args.dry_run) if not args.step or step.name in args.step]
    mine, out = machine(args.dry_run), Path(args.out)
    before = steps_before(out, mine)
    record: dict = {**(json.loads(out.read_text()) if before else {}), 'machine': mine}  # with what a hand has added
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(rows: list[dict]) -> None:
        for row in rows:  # what another call adds can be of another revision
            row['revision'] = mine['revision']
        steps = together(before, rows)
        record.update(steps=steps, goals=goals(steps))
        out.write_text(json.dumps(record, indent=1))

    rows = run_all(chosen, 60 * args.minutes, console, keep)
    show(record, console)
    console.print(f'written to {args.out}')
    if any(row['state'].startswith(('failed', 'ended')) for row in rows):
        sys.exit(1)
