import json

import pytest

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.datasets.subset import subset_coco


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 12, 1, size=64) / 'annotations/train.json'


def test_keeps_whole_images(source, tmp_path):
    names = subset_coco(source, tmp_path / 'new/few.json', 3)
    few, all_ = json.loads((tmp_path / 'new/few.json').read_text()), json.loads(source.read_text())
    assert names == [image['file_name'] for image in few['images']] == ['000000.png', '000001.png', '000002.png']
    kept = {image['id'] for image in few['images']}
    assert few['annotations'] == [a for a in all_['annotations'] if a['image_id'] in kept]
    assert few['categories'] == all_['categories']


def test_leaves_out_the_crowded(source, tmp_path):
    subset_coco(source, tmp_path / 'few.json', 2, max_instances=2)
    few = json.loads((tmp_path / 'few.json').read_text())
    assert len(few['annotations']) <= 4


def test_too_few_images(source, tmp_path):
    with pytest.raises(ValueError, match=r'train.json has 12 images with 1 to any number of instances, 13 were asked'):
        subset_coco(source, tmp_path / 'few.json', 13)


def test_the_source_is_kept(source, tmp_path):
    before = source.read_text()
    with pytest.raises(ValueError, match='train.json would be overwritten by its own part'):
        subset_coco(source, source.parent / '../annotations/train.json', 2)
    assert source.read_text() == before


@pytest.mark.parametrize(('change', 'message'), [
    (lambda content: content['annotations'][0].pop('image_id'), "KeyError: 'image_id'"),
    (lambda content: content['images'][0].pop('id'), "KeyError: 'id'"),
    (lambda content: content['images'][0].pop('file_name'), "KeyError: 'file_name'"),
    (lambda content: content['images'][0].update(id='one'), 'TypeError'),
    (lambda content: content.update(annotations=5), 'TypeError'),
])
def test_a_json_that_lacks_something(source, tmp_path, change, message):
    content = json.loads(source.read_text())
    change(content)
    (tmp_path / 'own.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'own.json is no COCO json of instances .{message}'):
        subset_coco(tmp_path / 'own.json', tmp_path / 'few.json', 2)
