"""What every command line of this package shares."""

from __future__ import annotations

import argparse
import sys


def command_line(description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example.

    Args:
        description: what the command does, in a line.
        example: arguments of a call, as a user would type them.
    """
    program = sys.argv[0]
    if program.endswith('.py'):
        program = f'python {program}'
    return argparse.ArgumentParser(prog=program, description=description, epilog=f'example: {program} {example}',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
