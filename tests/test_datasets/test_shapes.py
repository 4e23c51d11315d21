import errno
import hashlib
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rkan_mm.apis import make_data
from rkan_mm.apis.runner import main
from rkan_mm.datasets.shapes import CLASSES, VERSION, draw_scene, make_shapes


def digest(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob('*')) if path.is_file()}


def test_is_deterministic_and_an_image_does_not_depend_on_the_others(tmp_path):
    a = digest(make_shapes(tmp_path / 'a', num_train=4, num_val=2, seed=3))
    assert a == digest(make_shapes(tmp_path / 'b', num_train=4, num_val=2, seed=3))
    more = digest(make_shapes(tmp_path / 'c', num_train=6, num_val=2, seed=3))
    assert {name: more[name] for name in a if name.endswith('.png')} == \
        {name: value for name, value in a.items() if name.endswith('.png')}
    assert a['train/000000.png'] != digest(make_shapes(tmp_path / 'd', 4, 2, seed=4))['train/000000.png']
    assert a['train/000000.png'] != a['val/000000.png']


def test_a_version_names_one_drawing():
    total = hashlib.sha256()
    for index in range(8):
        picture, instances = draw_scene(np.random.default_rng([0, 0, index]), 128)
        total.update(picture.tobytes())
        for kind, mask in instances:
            total.update(bytes([kind]) + mask.tobytes())
    drawings = {2: 'eca44c717bac'}
    assert total.hexdigest()[:12] == drawings.get(VERSION), (
        'the pictures changed: raise VERSION, and make data_fingerprints and the records of the shapes anew')


def test_is_coco(tmp_path):
    root = make_shapes(tmp_path / 'shapes', num_train=30, num_val=3, size=96)
    content = json.loads((root / 'annotations/train.json').read_text())
    assert [category['name'] for category in content['categories']] == list(CLASSES)
    assert {annotation['category_id'] for annotation in content['annotations']} == {1, 2, 3, 4, 5}
    for image in content['images']:
        assert cv2.imread(str(root / 'train' / image['file_name'])).shape == (96, 96, 3)
        masks = [coco_mask.decode(annotation['segmentation']) for annotation in content['annotations']
                 if annotation['image_id'] == image['id']]
        assert 1 <= len(masks) <= 4
        assert np.stack(masks).sum(0).max() == 1, 'visible masks do not overlap'
    for annotation in content['annotations']:
        mask = coco_mask.decode(annotation['segmentation'])
        ys, xs = np.nonzero(mask)
        assert annotation['area'] == len(ys) >= 40
        assert annotation['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def test_shapes_hide_each_other_and_rings_have_holes():
    scenes = [draw_scene(np.random.default_rng(seed), 128)[1] for seed in range(60)]
    rings = [mask for scene in scenes for kind, mask in scene if CLASSES[kind] == 'ring']
    assert any(len(cv2.findContours(ring, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]) > 1 for ring in rings)
    boxes = [[cv2.boundingRect(mask) for _, mask in scene] for scene in scenes]
    meet = sum(x1 < x2 + w2 and x2 < x1 + w1 and y1 < y2 + h2 and y2 < y1 + h1
               for scene in boxes for i, (x1, y1, w1, h1) in enumerate(scene) for x2, y2, w2, h2 in scene[:i])
    assert meet > 20


def test_is_made_once_and_replaced_when_asked_for_another(tmp_path):
    root = make_shapes(tmp_path / 'shapes', 2, 2)
    stamp = (root / 'train/000000.png').stat().st_mtime_ns
    make_shapes(root, 2, 2)
    assert (root / 'train/000000.png').stat().st_mtime_ns == stamp
    make_shapes(root, 1, 2)
    assert len(list((root / 'train').iterdir())) == 1


def test_a_half_made_set_is_made_again(tmp_path):
    root = make_shapes(tmp_path / 'shapes', 2, 2)
    (root / 'shapes.json').write_text(json.dumps({}))
    (root / 'val/000001.png').unlink()
    assert (make_shapes(root, 2, 2) / 'val/000001.png').exists()


def test_a_set_whose_drawing_was_stopped_is_drawn_again(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr('rkan_mm.datasets.shapes.draw_scene', stop)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(tmp_path / 'shapes', 2, 2)
    assert (make_shapes(tmp_path / 'shapes', 2, 2) / 'val/000001.png').exists()


def test_never_touches_another_folder(tmp_path):
    (tmp_path / 'thesis.tex').write_text('x')
    with pytest.raises(FileExistsError, match=re.escape(f'{tmp_path} exists and holds no shapes data set')):
        make_shapes(tmp_path)
    assert (tmp_path / 'thesis.tex').exists()


@pytest.mark.parametrize('args', [dict(size=32), dict(num_train=0), dict(num_val=0)])
def test_bad_arguments(tmp_path, args):
    with pytest.raises(ValueError, match='size must be at least 64 and each split have an image'):
        make_shapes(tmp_path / 'shapes', **args)


def test_a_full_disk(tmp_path, monkeypatch, capsys):
    """OpenCV itself writes half a picture, or none, in silence."""
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with monkeypatch.context() as patched:
        patched.setattr(Path, 'write_bytes', full)
        with pytest.raises(SystemExit) as end:
            main(make_data.shapes, [str(tmp_path / 'shapes'), '--num-train', '1', '--num-val', '1'])
    assert end.value.code == 2
    assert 'No space left on device' in capsys.readouterr().err
    (tmp_path / 'shapes/shapes.json').write_text('{"desc')  # as it may be left
    assert (make_shapes(tmp_path / 'shapes', 1, 1) / 'val/000000.png').exists()
