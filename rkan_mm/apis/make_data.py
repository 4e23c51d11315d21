"""The command lines of tools/make_shapes.py and tools/subset_coco.py."""

from __future__ import annotations

from collections.abc import Sequence

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.datasets.subset import subset_coco

from .command_line import at_least, command_line, file_to_write, folder_to_write, of_the_user, positive


def shapes(argv: Sequence[str] | None = None) -> None:
    """Draw the shapes data set.

    Raises:
        PreflightError: the folder holds something else.
    """
    parser = command_line('Draw the data set of the demo, textured shapes with masks', 'data/shapes')
    parser.add_argument('root', nargs='?', type=folder_to_write, default='data/shapes', help='default: data/shapes')
    parser.add_argument('--num-train', type=positive, default=600, help='pictures (default: 600)')
    parser.add_argument('--num-val', type=positive, default=100, help='pictures (default: 100)')
    parser.add_argument('--size', type=at_least(64), default=128, help='side in pixels (default: 128)')
    parser.add_argument('--seed', type=at_least(0), default=0)
    args = parser.parse_args(argv)
    with of_the_user(OSError):
        print(f'{make_shapes(**vars(args))} is ready')


def subset(argv: Sequence[str] | None = None) -> None:
    """Write the annotations of a few COCO images.

    Raises:
        PreflightError: the source cannot be read, or has fewer such images.
    """
    parser = command_line('Write the annotations of a few images of COCO', 'SRC.json DST.json --num-images 8')
    parser.add_argument('source')
    parser.add_argument('target', type=file_to_write)
    parser.add_argument('--num-images', type=positive, default=8)
    parser.add_argument('--max-instances', type=positive, help='leave out images with more, or with crowds')
    args = parser.parse_args(argv)
    with of_the_user(OSError, ValueError):
        print(f'{args.target}: {", ".join(subset_coco(**vars(args)))}')
