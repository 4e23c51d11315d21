"""A small instance-segmentation data set, drawn: textured shapes that overlap on textured backgrounds, in COCO format.

It needs no download, trains in minutes, and is read by mmdet's ``CocoDataset`` and judged by its ``CocoMetric``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CLASSES = ('disc', 'rectangle', 'triangle', 'star', 'ring')
VERSION = 2  # a new one whenever the pictures of a seed change; 1 named two different drawings


def make_shapes(root: str | Path, num_train: int = 600, num_val: int = 100, size: int = 128, seed: int = 0) -> Path:
    """Write the data set, unless the same one is already there.

    The result is ``root/train/*.png``, ``root/val/*.png`` and ``root/annotations/{train,val}.json`` with run-length
    encoded masks of what is visible. The same arguments give the same files.

    Args:
        root: folder of the data set; another shapes data set in it is replaced.
        num_train, num_val: images of the splits.
        size: height and width of the images, in pixels.
        seed: of everything random. An image does not depend on how many others there are.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: ``size`` is below 64 or a split is empty.
        FileExistsError: ``root`` holds something else.
        OSError: a picture cannot be written, e.g. on a full disk.
    """
    if size < 64 or num_train < 1 or num_val < 1:
        raise ValueError(f'make_shapes: size must be at least 64 and each split have an image, got size={size}, '
                         f'num_train={num_train}, num_val={num_val}')
    root = Path(root)
    info = dict(description='rkan_mm shapes', version=VERSION, num_train=num_train, num_val=num_val, size=size,
                seed=seed)
    stamp = root / 'shapes.json'
    if stamp.exists():
        if stamp.read_text() == json.dumps(info):
            return root
    elif root.exists() and any(root.iterdir()):
        raise FileExistsError(f'make_shapes: {root} exists and holds no shapes data set; name another folder')
    root.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(dict(info, description='rkan_mm shapes, unfinished')))
    for split_index, (split, count) in enumerate((('train', num_train), ('val', num_val))):
        shutil.rmtree(root / split, ignore_errors=True)
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            rng = np.random.default_rng([seed, split_index, index])
            picture, instances = draw_scene(rng, size)
            name = f'{index:06d}.png'
            images.append(dict(id=index + 1, file_name=name, height=size, width=size))
            (root / split / name).write_bytes(cv2.imencode('.png', picture)[1].tobytes())  # imwrite fails in silence
            for category, mask in instances:
                rle = coco_mask.encode(np.asfortranarray(mask))
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=index + 1, category_id=category + 1, iscrowd=0,
                    area=int(coco_mask.area(rle)), bbox=coco_mask.toBbox(rle).tolist(),
                    segmentation=dict(size=rle['size'], counts=rle['counts'].decode())))
        content = dict(info=info, images=images, annotations=annotations,
                       categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)])
        (root / 'annotations').mkdir(exist_ok=True)
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    stamp.write_text(json.dumps(info))
    return root


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One picture, (size, size, 3) uint8 in BGR, and its instances: (class index, visible mask (size, size) uint8)."""
    background = rng.uniform(20, 235, 3)
    picture = _texture(rng, size, background, contrast=25)
    instances: list[tuple[int, np.ndarray]] = []
    full_areas: list[int] = []
    wanted = rng.integers(1, 5)
    for _ in range(20):
        if len(instances) == wanted:
            break
        category = int(rng.integers(len(CLASSES)))
        mask = _draw_mask(rng, CLASSES[category], size)
        hidden = [(kind, other & ~mask & 1) for kind, other in instances]
        if mask.sum() < 80 or any(m.sum() < 0.5 * area for (_, m), area in zip(hidden, full_areas, strict=True)):
            continue  # too little of it, or of one that it covers, would be seen
        instances = [*hidden, (category, mask)]
        full_areas.append(int(mask.sum()))
        colour = _other_colour(rng, background)
        picture = np.where(mask[..., None], _texture(rng, size, colour, contrast=40), picture)
    noisy = picture + rng.normal(0, 4, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8), instances


def _other_colour(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A colour that differs from the given one by at least 80 in a channel."""
    while True:
        other = rng.uniform(20, 235, 3)
        if np.abs(other - colour).max() >= 80:
            return other


def _texture(rng: np.random.Generator, size: int, colour: np.ndarray, contrast: float) -> np.ndarray:
    """A colour with stripes, checks, dots or clouds on it, (size, size, 3) float."""
    y, x = np.mgrid[:size, :size].astype(float)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 16)
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    v = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    pattern = (
        lambda: np.sin(u),
        lambda: np.sign(np.sin(u) * np.sin(v)),
        lambda: (np.sin(u) + np.sin(v) > 1).astype(float),
        lambda: cv2.resize(rng.uniform(-1, 1, (8, 8)), (size, size), interpolation=cv2.INTER_CUBIC),
    )[rng.integers(4)]()
    return colour + pattern[..., None] * rng.uniform(-contrast, contrast, 3)


def _draw_mask(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """The mask of one shape at a random place, size, aspect and angle, (size, size) uint8 of zeros and ones."""
    radius = rng.uniform(0.11, 0.27) * size
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
    aspect, angle = rng.uniform(0.7, 1.0), rng.uniform(-0.3, 0.3)
    corners = dict(disc=48, rectangle=4, triangle=3, star=10, ring=48)[name]
    phi = (np.arange(corners) + 0.5) * 2 * np.pi / corners  # with four corners, the aspect gives a rectangle
    reach = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == 'star' else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outline = (np.stack([np.cos(phi) * reach, np.sin(phi) * reach * aspect], 1) * radius) @ turn.T
    contours = [outline, outline * 0.55] if name == 'ring' else [outline]
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(centre + contour).astype(np.int32) for contour in contours], 1)  # even-odd: a hole
    return mask
