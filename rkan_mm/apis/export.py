"""Trained models as files that run without this package: the command line of tools/export.py."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from rkan_mm.engine.run_error import PreflightError
from rkan_mm.engine.safe_loading import safe_loading
from rkan_mm.preflight import check_checkpoint

from .command_line import add_cfg_options, at_least, command_line, pattern, positive
from .image_paths import list_images
from .runner import add_allow_partial, load_config

if TYPE_CHECKING:
    from rkan_mm.deploy.comparison import Comparison

CALIBRATION = 200
"""Pictures of the training set that show which ranges 8 bits are to hold."""

FORMATS = ('onnx', 'pt2', 'torchscript', 'c')


def check_extra(*modules: str) -> None:
    """Raise `PreflightError` where a module of the extra ``deploy`` is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise PreflightError(f'Exporting needs {" and ".join(missing)}: pip install {" ".join(missing)}, or this '
                             "package with its extra, pip install '.[deploy]'.")


def main(argv: Sequence[str] | None = None) -> Comparison | None:
    """Command line of tools/export.py.

    Returns:
        What was measured; None for a file in C where there is no compiler.

    Raises:
        PreflightError: the place, a part of the extra, the config, the checkpoint or its data are not there, or the
            model has a part that cannot be exported; then nothing is left at the place.
    """
    parser = command_line('Export a trained model to one file, pictures in and predictions out, and compare it with '
                          'PyTorch on real pictures',
                          'configs/mask-rcnn_rkanet18_fpn_shapes.py epoch_8.pth model.onnx --dynamic')
    parser.add_argument('config', help='config file of mmdet or mmpretrain, or the name of one of ours')
    parser.add_argument('checkpoint')
    parser.add_argument('out', help='file to write: .onnx, .pt2, .pt or .c')
    parser.add_argument('--format', choices=FORMATS, default='onnx')
    parser.add_argument('--dynamic', action='store_true', help='for any batch, height and width')
    parser.add_argument('--fp16', action='store_true', help='half precision but for boxes and probabilities')
    parser.add_argument('--int8', nargs='*', metavar='IMAGE',
                        help='convolutions and matrix products in 8 bits, calibrated on these images or this folder '
                             f'(default: {CALIBRATION} of the training set of the config, evenly spread)')
    parser.add_argument('--int8-only', choices=('weights', 'activations'), default='',
                        help='with --int8: the other in 16 bits')
    parser.add_argument('--round-weights', type=pattern, metavar='REGEX', default='',
                        help='parameters, by name, that are rounded to 8 bits and remain float: what each costs')
    parser.add_argument('--float-parts', type=pattern, metavar='REGEX', default='',
                        help='with --int8: modules, by their name in the file, that remain float')
    parser.add_argument('--opset', type=at_least(11), default=17, help='of ONNX; from 16 on for two-stage detectors')
    parser.add_argument('--images', nargs='+', default=[], metavar='IMAGE',
                        help='images or a folder to compare on (default: the validation set of the config)')
    parser.add_argument('--eval-images', type=positive, metavar='N',
                        help='so many of the validation set, evenly spread (default: all)')
    add_allow_partial(parser)
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    check_extra(*(['onnx', 'onnxruntime'] if args.format == 'onnx' else []))
    from rkan_mm.deploy import comparison, files
    from rkan_mm.deploy.c.compiled import compiler
    from rkan_mm.deploy.departure import departure
    from rkan_mm.deploy.int8 import quantize
    from rkan_mm.inspection.subject import Subject
    files.check_place(args.out, args.format)
    if Path(args.out).resolve() in (Path(args.config).resolve(), Path(args.checkpoint).resolve()):
        raise PreflightError(f'{args.out!r} is what the model is read from: give the file another name.')
    cfg = load_config(args.config, args.cfg_options)
    check_checkpoint(args.checkpoint)
    images, calibration, to_int8 = list_images(args.images), list_images(args.int8 or []), args.int8 is not None
    if to_int8 and (args.format != 'onnx' or args.fp16):
        raise PreflightError('--int8 is of --format onnx, without --fp16.')
    if to_int8 and args.opset < 13:
        raise PreflightError(f'--int8 is of opset 13 or later: --opset {args.opset} has one range for all channels.')
    if (args.int8_only or args.float_parts) and not to_int8:
        raise PreflightError('--int8-only and --float-parts are of --int8.')
    if args.format == 'c' and (args.dynamic or args.fp16):
        raise PreflightError('--format c is of one size and of float32: without --dynamic and --fp16.')
    with safe_loading():
        subject = Subject(cfg, args.checkpoint, images, device='cpu', any_model=True, allow_partial=args.allow_partial)
    if subject.is_detector and args.format == 'c':
        raise PreflightError('--format c is of classifiers; detectors leave as onnx, pt2 or torchscript.')
    leaving = departure(subject, args.dynamic)
    with files.whole(args.out) as unfinished:
        leaving.write(unfinished, args.format, args.fp16, args.opset, args.round_weights)
        if to_int8:
            pictures = leaving.pictures(subject.prepared(calibration) if calibration else
                                        subject.of_training(CALIBRATION))
            in_float, float_size = files.read(unfinished, 'onnx')[0], unfinished.stat().st_size
            count = quantize(unfinished, unfinished, pictures, args.float_parts, args.int8_only)
            part = f'the {args.int8_only} of ' if args.int8_only else ''
            print(f'{part}{count} convolutions and products compute in 8 bits, calibrated on {len(pictures)} images')
            before, after = comparison.in_turns((in_float, files.read(unfinished, 'onnx')[0]), pictures[:20])
            print(f'beside the file in float: {unfinished.stat().st_size / 1024:.0f} of {float_size / 1024:.0f} KiB, '
                  f'{after:.2f} of {before:.2f} ms a picture, in turns (x {after / before:.2f})')
        if args.format == 'c' and compiler() is None:
            print(f'{args.out} is written and not compared with PyTorch: there is no C compiler, cc.')
            return None
        found = comparison.compare(subject, leaving, unfinished, args.format, args.eval_images, not images)
        exact = not (args.fp16 or to_int8 or args.round_weights)
        if exact and leaving.info['task'] == 'classification' and not found.difference <= comparison.TOLERANCE:
            told = ('it gives NaN for some pictures; look whether the model does, too, by tools/infer.py'
                    if math.isnan(found.difference) else 'its probabilities differ from those of PyTorch by up to '
                    f'{found.difference:.1e}; {comparison.TOLERANCE:.0e} was expected')
            raise PreflightError(f'{args.out} is not written: {told}.')
        size = unfinished.stat().st_size
    print_comparison(found, args.out, size, args.format)
    return found


def print_comparison(found: Comparison, path: str, size: int, form: str) -> None:
    """A table of the file, of such a format, beside PyTorch."""
    table = Table(title=f'{path}, {size / 2 ** 20:.1f} MiB, on {found.pictures} pictures')
    for column in ('', 'PyTorch', 'file', 'difference'):
        table.add_column(column, justify='left' if not column else 'right')
    for name, (own, other) in found.metrics.items():
        table.add_row(name, f'{own:.4g}', f'{other:.4g}', f'{other - own:+.2g}')
    own, other = found.milliseconds
    table.add_row('ms per picture', f'{own:.1f}', f'{other:.1f}', f'x {other / own:.2f}')
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f'Agreement: {100 * found.agreement:.2f} % of the pictures have the same '
                  f'{"class" if found.single else "classes, in the same order"}; '
                  f'scores differ by up to {found.difference:.1e}.')
    if found.boxes:
        console.print(f'Boxes: {found.boxes[0]:,} of {found.boxes[1]:,} are in the file, too (the same class, an IoU '
                      f'of at least 0.5), within {found.pixels:.2g} pixels.')
    threads = torch.get_num_threads()
    console.print('Time: median, one picture at a time, in turns, '
                  + (f'{threads} threads of PyTorch, one of the file.' if form == 'c' else f'{threads} threads each.'))
