"""What every command line of this package shares."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import DictAction

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.engine.writing import why_not_written

OVERRIDE = 'settings of the config; data_root=DIR moves every path below the old data root'


INSTEAD = {
    '--eval': 'the metrics are those of test_evaluator, e.g. --cfg-options test_evaluator.metric=bbox',
    '--format-only': '--cfg-options test_evaluator.format_only=True test_evaluator.outfile_prefix=DIR/NAME',
    '--gpus': '--launcher pytorch under torchrun --nproc-per-node N', '--gpu-id': 'CUDA_VISIBLE_DEVICES=N before it',
    '--gpu-ids': 'CUDA_VISIBLE_DEVICES=N,M before it', '--device': 'CUDA_VISIBLE_DEVICES= before it, for the CPU',
    '--seed': '--cfg-options randomness.seed=N', '--deterministic': '--cfg-options randomness.deterministic=True',
    '--resume-from': '--resume CHECKPOINT', '--load-from': '--cfg-options load_from=CHECKPOINT',
    '--options': '--cfg-options KEY=VALUE', '--lr': '--cfg-options optim_wrapper.optimizer.lr=NUMBER',
    '--epochs': '--cfg-options train_cfg.max_epochs=N', '--batch-size': '--cfg-options train_dataloader.batch_size=N',
    '--checkpoint': 'the path alone, behind the config', '--config': 'the path alone',
}
"""What stands here for options of older mm, and for those that others have."""


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: a whole number of at least so much."""
    def number(text: str) -> int:
        if not text.removeprefix('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'expected a whole number of at least {least}, got {text!r}')
        return int(text)
    return number


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    return at_least(1)(text)


def part(text: str) -> float:
    """For argparse: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'expected a number from 0 to 1, got {text!r}')
    return value


def pattern(text: str) -> str:
    """For argparse: a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no regular expression: {error}') from error
    return text


def file_to_write(text: str) -> str:
    """For argparse: a file that can be written, so that no work is done in vain; nothing is made yet."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{text!r} is a folder: give the name of a file')
    folder_to_write(str(path.parent))
    return text


def folder_to_write(text: str) -> str:
    """For argparse: a folder that is there or can be made, and be written to; nothing is made yet."""
    if reason := why_not_written(Path(text)):
        raise argparse.ArgumentTypeError(f'{text!r} cannot be written ({reason}): choose another')
    return text


@contextlib.contextmanager
def of_the_user(*kinds: type[Exception]) -> Iterator[None]:
    """Meanwhile errors of these kinds are what the command line asks for and cannot be done.

    Raises:
        PreflightError: with their text.
    """
    try:
        yield
    except kinds as error:
        raise PreflightError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """A parser whose usage is one line; the list below it tells the options."""

    def error(self, message: str) -> NoReturn:
        hints = [f'for {option}: {INSTEAD[option]}' for option in re.findall(r'--[\w-]+', message)
                 if message.startswith('unrecognized') and option in INSTEAD]
        self.exit(2, f'{self.prog}: {"; ".join([message, *hints])} (--help lists the options)\n')

    def format_help(self) -> str:
        names = [str(action.metavar or action.dest) for action in self._actions if not action.option_strings]
        self.usage = f'%(prog)s {" ".join(names)} [options]'
        return super().format_help()


class CfgOptions(DictAction):
    """mmengine's KEY=VALUE options; what it cannot read is an error of the command line, not a traceback.

    Spaces within a text stay, as in names of folders; mmengine takes them out.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        kept = re.sub(r'(?<=[^\s,()\[\]]) +(?=[^\s,()\[\]])', lambda spaces: HELD * len(spaces[0]), val)
        return _with_spaces(DictAction._parse_iterable(kept))

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Sequence[str],
                 option_string: str | None = None) -> None:
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string} takes KEY=VALUE, without spaces around "=", and got {value!r}')
            if re.match(DICT, value.partition('=')[2]):
                parser.error(f'{option_string} takes no dict, as in {value!r}: write each of its keys, as in a.b=1, '
                             'and within a list behind a place that the list has, as in a.0.b=1; else write it in the '
                             'config')
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (AssertionError, RecursionError):
                parser.error(f'{option_string} cannot read {value!r}: lists and tuples as [1,2] or (1,2), in quotes')


DICT = r'''(.*[\[(,])?[\s'"]*(dict\(|\{\s*(\w+|'[^']*'|"[^"]*")\s*:(?!\d*\.?\d*[a-z]\})).*[)}\]'"]\s*$'''
"""A dict, or a list with one; a format such as epoch_{:03d}.pth or {epoch:03d} is none."""

HELD = '\0'
"""Stands for a space, and cannot come from a command line."""


def _with_spaces(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_spaces, value))
    return value.replace(HELD, ' ') if isinstance(value, str) else value


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, metavar='KEY=VALUE', default={}, help=OVERRIDE)


def command_line(description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example.

    Args:
        description: what the command does, in a line.
        example: arguments of a call, as a user would type them.
    """
    program = sys.argv[0]
    if program.endswith('.py'):
        program = f'python {program}'
    return Parser(prog=program, description=description, epilog=f'example: {program} {example}',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
