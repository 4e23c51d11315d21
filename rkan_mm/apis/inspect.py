"""A page of what a trained model has learned: the command line of tools/inspect.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.engine.safe_loading import safe_loading
from rkan_mm.preflight import check_checkpoint

from .command_line import add_cfg_options, at_least, command_line, part
from .image_paths import list_images
from .runner import add_allow_partial, load_config

if TYPE_CHECKING:
    from torch import nn

SKIPPED = ('formulas', 'metric', 'cam', 'field', 'pruning')  # as inspection.report has them, which imports matplotlib


def _images(text: str) -> int | str:
    return text if text == 'all' else at_least(1)(text)


def without_effect(given: Collection[str], skip: Collection[str], model: nn.Module) -> list[str]:
    """Sentences on options that were given and change nothing.

    Args:
        given: names of options.
        skip: parts that are left out.
        model: what is looked at.
    """
    from rkan_mm.inspection import kan_layers
    from rkan_mm.models.layers import KANLayer
    shared = not any(isinstance(layer, KANLayer) for layer in kan_layers(model).values())
    pruning = ('sparsities', 'finetune_iters')
    rules = [
        (shared, f'all functions of {type(model).__name__} are those of kernels that its channels share, which are '
         'drawn whole and not pruned', ('top', *pruning)),
        ('metric' in skip, 'the metric is left out', ('eval_images', *pruning)),
        ('pruning' in skip, 'pruning is left out', pruning),
        ('cam' in skip, 'maps of where the model looks are left out', ('boxes',)),
        ({'cam', 'field'} <= set(skip), 'maps and receptive fields are left out', ('cam_layer',)),
    ]
    sentences = []
    for holds, reason, options in rules:
        idle = [f'--{option.replace("_", "-")}' for option in options if option in given]
        if holds and idle:
            sentences.append(f'{", ".join(idle)} {"changes" if len(idle) == 1 else "change"} nothing here: {reason}.')
    return sentences


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
    parser.add_argument('--num-images', type=at_least(0), metavar='N', default=20,
                        help='looked at, of the validation set (default: 20)')
    parser.add_argument('--eval-images', type=_images, metavar='N|all',
                        help='images of the validation set for the metric (default: --num-images)')
    parser.add_argument('--top', type=at_least(1), metavar='N', help='functions of KAN layers that are drawn '
                        '(default: 9)')
    parser.add_argument('--boxes', type=at_least(1), metavar='N', help='maps of where the model looks (default: 3)')
    parser.add_argument('--score-thr', type=part, metavar='T', help='boxes with less are left out (default: 0.3)')
    parser.add_argument('--cam-layer', metavar='NAME',
                        help='module whose features are looked at (default: last stage with a block)')
    parser.add_argument('--sparsities', type=part, nargs='+', metavar='S',
                        help='parts of the functions that are pruned (default: 0.25 0.5 0.75 0.9)')
    parser.add_argument('--finetune-iters', type=at_least(0), metavar='N',
                        help='iterations of training after pruning (default: 0)')
    parser.add_argument('--symbolic', type=at_least(0), metavar='N',
                        help='fit simple formulas to the N most important functions (default: 0)')
    parser.add_argument('--skip', nargs='+', choices=SKIPPED, default=[], metavar='PART',
                        help=f'leave out some of {", ".join(SKIPPED)}')
    parser.add_argument('--device', help='e.g. cpu or cuda:0 (default: a GPU where there is one)')
    add_allow_partial(parser)
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
        subject = Subject(cfg, args.checkpoint, images, args.num_images, args.device,
                          allow_partial=args.allow_partial)
    given = {name: value for name in ('top', 'boxes', 'score_thr', 'cam_layer', 'sparsities', 'finetune_iters',
                                      'symbolic') if (value := getattr(args, name)) is not None}
    eval_images = args.num_images or 20 if args.eval_images is None else args.eval_images
    options = Options(eval_images=None if eval_images == 'all' else eval_images, skip=args.skip, **given)
    if args.eval_images is not None:
        given['eval_images'] = args.eval_images
    for sentence in without_effect(given, args.skip, subject.model):
        print(f'inspect: {sentence}', file=sys.stderr)
    page = look(subject, args.out_dir or Path(cfg.work_dir) / 'inspect', options)
    print(f'Page: {page}, figures and data beside it ({time.monotonic() - start:.0f} s)')
    return page
