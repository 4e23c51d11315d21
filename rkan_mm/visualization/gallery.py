"""A picture of many pictures: ground truth beside prediction."""

from __future__ import annotations

from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from matplotlib import colormaps
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import nn


def draw_gallery(model: nn.Module, dataset, out_file: str | Path, num_images: int = 8, score_thr: float = 0.5,
                 zoom: int = 2) -> Path:
    """Draw the first images of a mmdet data set with their ground truth (left) and the model's prediction (right).

    Args:
        model: mmdet detector.
        dataset: mmdet data set with annotations in its pipeline.
        out_file: picture to write; its folder is made.
        num_images: pairs of pictures, in two columns.
        score_thr: least score of a prediction that is drawn.
        zoom: factor by which the images are enlarged.

    Returns:
        ``out_file`` as a path.

    Raises:
        OSError: the picture cannot be written.

    Example:
        >>> draw_gallery(detector, shapes, 'gallery.png', num_images=2)
        PosixPath('gallery.png')
    """
    from mmdet.structures.mask import bitmap_to_polygon

    colours = colormaps['tab10'](range(10))  # (10, 4), RGBA
    palette = [tuple(int(255 * channel) for channel in colour[2::-1]) for colour in colours]  # BGR

    def draw(image: np.ndarray, instances: InstanceData, masks: np.ndarray) -> np.ndarray:
        canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        scores = instances.get('scores')
        for i, (label, mask) in enumerate(zip(instances.labels.tolist(), masks, strict=True)):
            colour = palette[label % len(palette)]
            large = cv2.resize(mask.astype(np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            canvas[large > 0] = (0.5 * canvas[large > 0] + 0.5 * np.array(colour)).astype(np.uint8)
            for contour in bitmap_to_polygon(large)[0]:
                cv2.polylines(canvas, [contour.astype(np.int32)], True, colour, 2, cv2.LINE_AA)
            text = dataset.metainfo['classes'][label] + ('' if scores is None else f' {scores[i]:.2f}')
            rows, columns = np.nonzero(large)
            if len(rows):
                place = (int(columns.min()), max(10, int(rows.min()) - 3))
                for line, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, line, width, cv2.LINE_AA)
        return canvas

    tiles = []
    model.eval()
    for i in range(min(num_images, len(dataset))):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([dataset[i]]))[0]
        image = mmcv.imread(sample.img_path)
        predicted = sample.pred_instances[sample.pred_instances.scores >= score_thr].cpu()
        pair = [draw(image, sample.gt_instances, sample.gt_instances.masks.masks),
                draw(image, predicted, predicted.masks.numpy())]
        gap = np.full((pair[0].shape[0], 4, 3), 255, np.uint8)
        tiles.append(np.hstack([pair[0], gap, pair[1], gap, gap, gap]))
    if len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.hstack(tiles[i:i + 2]) for i in range(0, len(tiles), 2)]
    separator = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out_file), np.vstack([part for row in rows for part in (row, separator)])):
        raise OSError(f'draw_gallery: cannot write {out_file}')
    return out_file
