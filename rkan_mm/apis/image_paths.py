"""The images that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mmcv

from rkan_mm.preflight import PreflightError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


def list_images(inputs: Sequence[str], broken: list[str] | None = None, named: bool = False) -> list[str]:
    """Paths of images; a folder stands for those in it, not below.

    Args:
        inputs: images and folders.
        broken: takes the images that cannot be read, if others can.
        named: results will be named after the images.

    Raises:
        PreflightError: something is not there, a folder has no image, two have one name (with ``named``), or an image
            cannot be read (with ``broken``: none can).
    """
    images = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in SUFFIXES)
            if not inside:
                raise PreflightError(f'Folder {name!r} has no image ({", ".join(SUFFIXES)}).')
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise PreflightError(f'Image {name!r} does not exist.')
    names, unreadable = {}, []
    images = list(dict.fromkeys(images))
    for image in images:
        other = names.setdefault(image.stem, image)
        if named and other != image:
            raise PreflightError(f'Results are named after their images, and {str(other)!r} and {str(image)!r} have '
                                 'one name: give them in two runs.')
        if not _can_be_read(image):
            unreadable.append(str(image))
    if unreadable and (broken is None or len(unreadable) == len(images)):
        raise PreflightError(f'Image {unreadable[0]!r} cannot be read as one.')
    if broken is not None:
        broken += unreadable
    return [str(image) for image in images if str(image) not in set(unreadable)]


def _can_be_read(image: Path) -> bool:
    try:
        return mmcv.imread(str(image)) is not None
    except Exception:  # OpenCV's own errors, on some torn files
        return False
