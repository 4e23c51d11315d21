"""What can be wrong with a COCO data set is said before training."""

import json
import re

import numpy as np
import pytest
from mmengine.logging import MMLogger

from rkan_mm.apis import runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine import RunError
from rkan_mm.preflight import PreflightError, check
from rkan_mm.preflight.annotations import check_annotations

CLASSES = ('disc', 'rectangle', 'triangle', 'star', 'ring')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=3, num_val=1, size=64)


@pytest.fixture
def damaged(drawn, tmp_path):
    """Check a copy of the annotations after a change to them."""
    content = json.loads((drawn / 'annotations/train.json').read_text())

    def checked(change, **kwargs):
        change(content)
        (tmp_path / 'train.json').write_text(json.dumps(content))
        check_annotations(str(tmp_path / 'train.json'), str(drawn / 'train'), CLASSES, **kwargs)
    return checked


def set_first(**values):
    return lambda content: content['annotations'][0].update(values)


def test_sound_annotations_pass(damaged):
    damaged(lambda content: None)


def rename(content):
    content['categories'][0]['name'] = 'disk'


def another_category(content):
    content['categories'].append(dict(id=77, name='blob'))
    content['annotations'][0]['category_id'] = 77


@pytest.mark.parametrize(('change', 'message'), [
    (rename, 'train.json has no category disc, which metainfo.classes of the config name; it has disk, rectangle'),
    (another_category, r"metainfo.classes of the config do not name: 'blob' \(1\). Without them on purpose: --cfg-op"),
    (set_first(category_id=99), r"do not name: 'number 99' \(1\)"),
    (set_first(image_id=99), 'annotation 1 is of image 99, which the file does not list'),
    (set_first(bbox=[1, 1, -5, 5]), r'annotation 1 of \d+.png: \[1, 1, -5, 5\] is no box x, y, width, height'),
    (set_first(bbox=[1, 1, float('nan'), 5]), 'is no box'),
    (set_first(segmentation=dict(size=[32, 64], counts='abc')),
     r'annotation 1 of \d+.png: its RLE is of size \[32, 64\], the image of \[64, 64\]'),
    (set_first(segmentation=dict(size=[64, 64], counts=[5, 5])), 'its RLE is of size'),
    (lambda content: content['annotations'].clear(), 'none of its 3 images has an annotated object'),
    (lambda content: content.pop('images'), 'is no COCO json of instances: KeyError'),
])
def test_damage_is_named(damaged, change, message):
    with pytest.raises(PreflightError, match=message):
        damaged(change)


def test_a_subset_of_the_categories_may_be_asked_for(damaged):
    damaged(another_category, allow_unknown=True)


def test_boxes_without_area_are_counted(damaged, monkeypatch):
    warnings = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', warnings.append)
    damaged(set_first(bbox=[3, 3, 0, 9]))
    assert re.search('1 boxes are without area or below a pixel and are not trained on: 1$', warnings[0])

    def flatten(content):
        for annotation in content['annotations']:
            annotation['bbox'][2] = 0

    with pytest.raises(PreflightError, match='none of its 3 images has an annotated object'):
        damaged(flatten)


@pytest.fixture
def cfg(root, tmp_path):
    data = make_shapes(tmp_path / 'shapes', 2, 1)
    return runner.load_config(str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), dict(data_root=str(data)),
                              str(tmp_path / 'work'))


def test_images_that_are_missing_or_torn(cfg, tmp_path):
    check(cfg, training=True)
    image = next(iter(sorted((tmp_path / 'shapes/train').iterdir())))
    data = image.read_bytes()
    image.write_bytes(data[:len(data) // 2])
    with pytest.raises(PreflightError, match=f'1 of 2 images are torn or no pictures: .*{image.name}'):
        check(cfg, training=True)
    image.unlink()
    with pytest.raises(PreflightError, match=f'1 of 2 images are not there: .*{image.name}'):
        check(cfg, training=True)
    cfg.preflight = dict(annotations=False)
    check(cfg, training=True)


def test_a_torn_jpeg(tmp_path):
    import cv2

    from rkan_mm.preflight.annotations import _is_whole
    path = tmp_path / 'a.jpg'
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert _is_whole(path)
    path.write_bytes(path.read_bytes() + bytes(200))  # padding behind the end does no harm
    assert _is_whole(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert not _is_whole(path)


def test_classes_of_the_data_set_itself(cfg):
    cfg.train_dataloader.dataset.pop('metainfo')  # then those of COCO hold
    with pytest.raises(PreflightError, match='has no category airplane, apple, backpack'):
        check(cfg, training=True)


def test_a_work_dir_that_cannot_be_written_to(cfg, tmp_path):
    (tmp_path / 'file').touch()
    cfg.work_dir = str(tmp_path / 'file/work')
    with pytest.raises(PreflightError, match=r"The work dir '.*' cannot be written to \(Not a directory\): choose"):
        check(cfg, training=True)


def test_a_gpu_that_is_not_there(cfg, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(PreflightError, match='CUDA_VISIBLE_DEVICES=0,1 asks for a GPU, and torch .* finds none'):
        check(cfg, training=True)


def test_a_training_set_that_its_filter_empties(cfg):
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=1000)
    with pytest.raises(RunError, match='The training set is empty: it has no sample, or its filter_cfg left none'):
        runner.train([cfg.filename, '--work-dir', cfg.work_dir, '--cfg-options', f'data_root={cfg.data_root}',
                      'train_dataloader.dataset.filter_cfg.min_size=1000'])
