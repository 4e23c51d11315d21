"""Predict with an ONNX file of tools/export.py, by onnxruntime, numpy and Pillow: MODEL OUT_DIR IMAGE ..."""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def prepared(image, step):
    (w, h), (width, height) = image.size, step['size']
    if step['op'] == 'crop':
        x, y = max(0, round((w - width) / 2)), max(0, round((h - height) / 2))
        return image.crop((x, y, min(w, x + width), min(h, y + height)))
    if step['fit'] == 'inside':
        scale = min(max(step['size']) / max(w, h), min(step['size']) / min(w, h))
        width, height = int(w * scale + 0.5), int(h * scale + 0.5)
    elif step['fit'] != 'stretch':
        by_width = step['fit'] in ('width', 'short' if w < h else 'long')
        width, height = (width, int(width * h / w)) if by_width else (int(height * w / h), height)
    size, way = (width, height), Image.Resampling[step['filter'].upper()]
    return image.resize(size, way) if step['antialias'] else image.transform(
        size, Image.Transform.AFFINE, (w / width, 0, 0, 0, h / height, 0), way)


def draw(image, one, name, threshold):
    (x1, y1, x2, y2), colour = one['boxes'], f'hsl({67 * int(one["labels"]) % 360}, 90%, 60%)'
    if 'masks' in one and x2 > x1 and y2 > y1:
        a, b = one['masks'].shape[1] / (x2 - x1), one['masks'].shape[0] / (y2 - y1)
        mask = np.array(Image.fromarray(one['masks']).transform(
            image.size, Image.Transform.AFFINE, (a, 0, -a * x1, 0, b, -b * y1), Image.Resampling.BILINEAR))
        image.paste(colour, mask=Image.fromarray((mask >= threshold).astype(np.uint8) * 128))
    ImageDraw.Draw(image).rectangle([x1, y1, x2, y2], outline=colour)
    ImageDraw.Draw(image).text((x1 + 2, y1), f'{name} {one["scores"]:.2f}', colour)


model, folder = onnxruntime.InferenceSession(sys.argv[1]), Path(sys.argv[2])
info = {key: json.loads(text) for key, text in model.get_modelmeta().custom_metadata_map.items()}
folder.mkdir(parents=True, exist_ok=True)
for path in map(Path, sys.argv[3:]):
    assert not path.parent.samefile(folder), f'{folder} is where the pictures are, and they would be overwritten'
    ready = image = ImageOps.exif_transpose(Image.open(path)).convert('L' if info['channels'] == 1 else 'RGB')
    for step in info['preparation'] or []:
        ready = prepared(ready, step)
    assert not info['size'] or np.all(np.less_equal(ready.size, info['size'])), f'{path} is too large for this file'
    canvas = Image.new(ready.mode, info['size'] or ready.size, tuple(info['blank'][:info['channels']]))
    canvas.paste(ready)
    array = np.array(canvas).reshape(1, canvas.height, canvas.width, -1).transpose(0, 3, 1, 2)
    out = dict(zip(info['outputs'], (value[0] for value in model.run(None, {'image': array})), strict=True))
    if 'boxes' in out:
        out['boxes'] = np.minimum(out['boxes'], ready.size * 2) * (image.size * 2 / np.array(ready.size * 2))
    out.setdefault('labels', np.arange(len(out['scores'])))
    found = [{k: v[i] for k, v in out.items()} for i in np.argsort(-out['scores']) if out['labels'][i] > -1]
    print(path, *(f'{info["classes"][one["labels"]]} {one["scores"]:.2f}' for one in found[:5]))
    for one in [one for one in found if 'boxes' in one and one['scores'] > 0.3][::-1]:
        draw(image, one, info['classes'][one['labels']], info['mask_threshold'])
    image.save(folder / f'{path.stem}.png')
    (folder / f'{path.stem}.json').write_text(json.dumps(found, default=lambda value: value.tolist()))
