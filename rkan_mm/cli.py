"""The console command: ``rkan-mm COMMAND ...``, the tools of this package for those without a checkout."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import rkan_mm

COMMANDS = {  # name: its function, what it does
    'demo': ('rkan_mm.apis.demo:main', 'draw a data set, train on it, show what was learned'),
    'train': ('rkan_mm.apis.runner:train', 'train a config'),
    'test': ('rkan_mm.apis.runner:test', 'test a checkpoint'),
    'infer': ('rkan_mm.apis.infer:main', 'predict on pictures, with json and drawings'),
    'inspect': ('rkan_mm.apis.inspect:main', 'look into a trained model: functions, formulas, what they are worth'),
    'export': ('rkan_mm.apis.export:main', 'a trained model as a file that runs without this package'),
    'convert': ('rkan_mm.apis.convert:main', 'convert a checkpoint from elsewhere'),
    'table': ('rkan_mm.tables.run:run_table', 'train the rows of a table over seeds'),
    'benchmark': ('rkan_mm.benchmarks.models:main', 'time a config beside its plain backbone'),
    'benchmark-layers': ('rkan_mm.benchmarks.layers:main', 'time KAN layers beside ordinary ones'),
    'benchmark-steps': ('rkan_mm.benchmarks.steps:main', 'a training step and a prediction of whole models on a CPU'),
    'check-gpu': ('rkan_mm.benchmarks.gpu:main', 'check and measure all on a GPU, in at most eight minutes'),
    'memory': ('rkan_mm.benchmarks.memory:main', 'count the memory that a training needs'),
    'make-shapes': ('rkan_mm.apis.make_data:shapes', 'draw the data set of the demo'),
    'subset-coco': ('rkan_mm.apis.make_data:subset', 'annotations of a few images of COCO'),
}


def usage() -> str:
    """What ``rkan-mm --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {what}' for name, (_, what) in COMMANDS.items()]
    return '\n'.join(['usage: rkan-mm COMMAND ...', '', 'commands:', *lines, '',
                      'CONFIG is a path or the name of one of our configs. `rkan-mm COMMAND --help` tells the rest.',
                      'example: rkan-mm train mask-rcnn_rkanet50_fpn_1x_coco --amp'])


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; what its user can mend is one message and exit code 2."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help'):
        print(usage())
        return
    if name == '--version':
        print(rkan_mm.__version__)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        sys.exit(f'rkan-mm: no command {name!r}; ' + (f'did you mean {near[0]!r}?' if near else
                                                      f'there are {", ".join(COMMANDS)}.'))
    from rkan_mm.apis.runner import main as run
    module, _, function = COMMANDS[name][0].partition(':')
    sys.argv = [f'rkan-mm {name}', *rest]
    run(getattr(importlib.import_module(module), function), rest)
