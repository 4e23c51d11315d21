"""A page of what a trained model has learned: the command line of tools/inspect.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.engine.safe_loading import safe_loading
from rkan_mm.preflight import check_checkpoint

from .command_line import add_cfg_options, command_line
from .infer import list_images
from .runner import load_config

SKIPPED = ('formulas', 'metric', 'cam', 'field', 'pruning')  # as inspection.report has them, which imports matplotlib


def _images(text: str) -> int | None:
    return None if text == 'all' else int(text)


def main(argv: Sequence[str] | None = None) -> Path:
    """Command line of tools/inspect.py.

    Returns:
        Path of the page.
    """
    parser = command_line('Look into a trained model: its functions as curves and formulas, what they are worth, where '
                          'it looks; as one page', 'configs/mask-rcnn_rkanet18_fpn_shapes.py epoch_8.pth')
    parser.add_argument('config', help='config file of mmdet or mmpretrain, or the name of one of ours')
    parser.add_argument('checkpoint')
    parser.add_argument('image', nargs='*', help='image, or a folder of images (default: of the validation set)')
    parser.add_argument('--out-dir', metavar='DIR', help='for the page (default: work_dirs/<config>/inspect)')
    parser.add_argument('--num-images', type=int, metavar='N', default=20, help='looked at, of the validation set')
    parser.add_argument('--eval-images', type=_images, default=0, metavar='N|all',
                        help='images of the validation set for the metric (default: --num-images)')
    parser.add_argument('--top', type=int, metavar='N', default=9, help='functions of KAN layers that are drawn')
    parser.add_argument('--boxes', type=int, metavar='N', default=3, help='maps of where the model looks')
    parser.add_argument('--score-thr', type=float, metavar='T', default=0.3, help='boxes with less are left out')
    parser.add_argument('--cam-layer', metavar='NAME',
                        help='module whose features are looked at (default: last stage with a block)')
    parser.add_argument('--sparsities', type=float, nargs='+', default=[0.25, 0.5, 0.75, 0.9], metavar='S',
                        help='parts of the functions that are pruned')
    parser.add_argument('--finetune-iters', type=int, metavar='N', default=0,
                        help='iterations of training after pruning')
    parser.add_argument('--symbolic', type=int, default=0, metavar='N',
                        help='fit simple formulas to the N most important functions')
    parser.add_argument('--skip', nargs='+', choices=SKIPPED, default=[], metavar='PART',
                        help=f'leave out some of {", ".join(SKIPPED)}')
    parser.add_argument('--device', help='e.g. cpu or cuda:0 (default: a GPU where there is one)')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    start = time.monotonic()
    cfg = load_config(args.config, args.cfg_options)
    check_checkpoint(args.checkpoint)
    images = list_images(args.image)
    if not images and args.num_images < 1:
        raise PreflightError('No images to look at: give some, or --num-images above 0.')
    from rkan_mm.inspection.report import Options, look
    from rkan_mm.inspection.subject import Subject
    with safe_loading():
        subject = Subject(cfg, args.checkpoint, images, args.num_images, args.device)
    options = Options(eval_images=args.num_images if args.eval_images == 0 else args.eval_images, top=args.top,
                      boxes=args.boxes, score_thr=args.score_thr, cam_layer=args.cam_layer, sparsities=args.sparsities,
                      finetune_iters=args.finetune_iters, symbolic=args.symbolic, skip=args.skip)
    page = look(subject, args.out_dir or Path(cfg.work_dir) / 'inspect', options)
    print(f'Page: {page}, figures and data beside it ({time.monotonic() - start:.0f} s)')
    return page
