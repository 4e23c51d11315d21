"""The demo: draw a data set, train a RKANet Mask R-CNN on it, print its AP, show its masks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.preflight import PreflightError
from rkan_mm.visualization import draw_gallery

from .command_line import Parser, add_cfg_options, command_line, of_the_user
from .runner import load_config, train

METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def ap_table(metrics: dict[str, float], title: str) -> Table:
    """The AP columns of COCO for boxes and masks; a dash where there are no such objects (-1), or none was found."""
    table = Table(title=title)
    for column in ('', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'):
        table.add_column(column)
    for kind in ('bbox', 'segm'):
        values = [metrics.get(f'coco/{kind}_{name}', -1) for name in METRICS]
        table.add_row(kind, *('-' if value < 0 else f'{value:.3f}' for value in values))
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Command line of tools/demo.py; returns the metrics."""
    parser = command_line('Draw a data set, train a RKANet Mask R-CNN on it, show its AP and masks. Other arguments '
                          'are those of train', '--work-dir shown')
    parser.add_argument('--config', default='configs/mask-rcnn_rkanet18_fpn_shapes.py', help='default: %(default)s')
    args, rest = parser.parse_known_args(argv)
    options = Parser(add_help=False)
    add_cfg_options(options)
    console = Console(width=100, highlight=False)
    start = time.monotonic()
    cfg = load_config(args.config, options.parse_known_args(rest)[0].cfg_options)
    root = cfg.get('data_root')
    if not root or 'segm' not in str(cfg.get('val_evaluator')) or any(each.startswith('--no-v') for each in rest):
        raise PreflightError('The demo trains on its own shapes, and shows masks and the AP of its validation: take a '
                             'config with data_root, whose val_evaluator has the metric segm, without --no-validate.')
    console.print(f'[bold]1/4[/] Drawing textured shapes with masks into {root} (usually 10 s)')
    with of_the_user(OSError):
        make_shapes(root)
    console.print(f'[bold]2/4[/] Training {args.config} from random weights (usually 8 min on two cores); the loss '
                  'should fall from about 5 to below 2')
    runner = train([args.config, *rest])
    console.print('[bold]3/4[/] Evaluating with COCO metrics on the val split (usually 15 s)')
    metrics = runner.val_loop.run()
    console.print(ap_table(metrics, f'{runner.experiment_name.rpartition("_2")[0]}, COCO AP on the val split'))
    console.print('[bold]4/4[/] Drawing predicted masks (usually 5 s)')
    picture = draw_gallery(runner.model, runner.val_dataloader.dataset, Path(runner.work_dir) / 'predictions.png')
    checkpoint = (Path(runner.work_dir) / 'last_checkpoint').read_text()
    console.print(f'Picture: {picture}  (pairs: ground truth, prediction)\nCheckpoint: {checkpoint}\n'
                  f'Done in {(time.monotonic() - start) / 60:.1f} min.', soft_wrap=True)
    return metrics
