"""The command lines of tools/make_shapes.py and tools/subset_coco.py."""

from __future__ import annotations

from collections.abc import Sequence

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.datasets.subset import subset_coco
from rkan_mm.preflight import PreflightError

from .command_line import command_line


def shapes(argv: Sequence[str] | None = None) -> None:
    """Draw the shapes data set."""
    parser = command_line('Draw the data set of the demo, textured shapes with masks', 'data/shapes')
    parser.add_argument('root', nargs='?', default='data/shapes', help='default: data/shapes')
    parser.add_argument('--num-train', type=int, default=600, help='pictures (default: 600)')
    parser.add_argument('--num-val', type=int, default=100, help='pictures (default: 100)')
    parser.add_argument('--size', type=int, default=128, help='side in pixels (default: 128)')
    parser.add_argument('--seed', type=int, default=0)
    print(f'{make_shapes(**vars(parser.parse_args(argv)))} is ready')


def subset(argv: Sequence[str] | None = None) -> None:
    """Write the annotations of a few COCO images.

    Raises:
        PreflightError: the source cannot be read, or has fewer such images.
    """
    parser = command_line('Write the annotations of a few images of COCO', 'SRC.json DST.json --num-images 8')
    parser.add_argument('source')
    parser.add_argument('target')
    parser.add_argument('--num-images', type=int, default=8)
    parser.add_argument('--max-instances', type=int, help='leave out images with more, or with crowds')
    args = parser.parse_args(argv)
    try:
        print(f'{args.target}: {", ".join(subset_coco(**vars(args)))}')
    except (OSError, ValueError) as error:
        raise PreflightError(str(error)) from error
