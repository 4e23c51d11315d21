"""What can be wrong with a COCO data set is said before training."""

import json
import re

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from rkan_mm.apis import runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.engine import RunError
from rkan_mm.preflight import PreflightError, check
from rkan_mm.preflight.annotations import CURES, check_annotations
from rkan_mm.preflight.datasets import check_data_sets

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


def annotate_nothing(content):
    content['annotations'].clear()


def change_first(**values):
    return lambda content: content['images'][0].update(values)


def drop(part, key):
    return lambda content: content[part][0].pop(key)


def segment(shape):
    return set_first(segmentation=shape)


def all_areas(factor):
    return lambda content: [each.update(area=each['area'] * factor) for each in content['annotations']]


DAMAGE = [
    (rename, 'train.json has no category disc, which metainfo.classes of the config name; it has disk, rectangle'),
    (another_category, r"metainfo.classes of the config do not name: 'blob' \(1\). Without them on purpose: --cfg-op"),
    (set_first(category_id=99), r"do not name: 'number 99' \(1\)"),
    (set_first(category_id='1'), r'do not name: "number \'1\'" \(1\)'),
    (set_first(image_id=99), r'annotation 1 \(image 99\) is of an image that the file does not list: list the image'),
    (set_first(bbox=[1, 1, -5, 5]), r'annotation 1 of \d+.png: \[1, 1, -5, 5\] is no box x, y, width, height: write'),
    (set_first(bbox=[1, 1, float('nan'), 5]), 'is no box'),
    (set_first(bbox=['1', '1', '5', '5']), 'is no box'),
    (set_first(bbox=[]), r'\[\] is no box'),
    (set_first(bbox=None), r'annotation 1 of \d+.png lacks bbox: write \[x, y, width, height\] in pixels. To run all'),
    *((drop('annotations', key), f'lacks {key}: {re.escape(cure)}') for key, cure in CURES.items()),
    (set_first(area='12'), "annotation 1 of .*\\(area '12'\\) has an area that is no number"),
    (set_first(iscrowd='no'), 'has an iscrowd that is neither 0 nor 1'),
    (set_first(id=2), 'annotation 2 share an id, and mmdet stops at that: number them anew from 1'),
    (set_first(id='one'), "annotation 'one' has an id that is no number, and COCO's evaluation stops at the first"),
    (all_areas(1e-4), r'has areas that are far from width \* height of the boxes: write them in pixels; AP of small'),
    (all_areas(1e4), 'has areas that are far from width'),
    (set_first(id=0), "an annotation has the id 0, with which COCO's evaluation counts what matches it as missed"),
    (segment(dict(size=[32, 64], counts='abc')),
     r'annotation 1 of \d+.png \(RLE of \[32, 64\], image of \[64, 64\]\) has an RLE that is not of its image'),
    (segment(dict(size=[64, 64], counts=[5, 5])), 'has an RLE that is not of its image'),
    (segment(dict(size=[64, 64])), 'has an RLE that is not of its image'),
    (segment([]), 'has no polygon, or one of less than three points'),
    (segment([[1, 1, 5, 5]]), r'annotation 1 of \d+.png \(\[\[1, 1, 5, 5\]\]\) has no polygon, or one of less than'),
    (segment([[1, 1, 5, 5, 9, 9, 3]]), 'has no polygon'),
    (segment([[1, 1, 5, 5, None, 9]]), 'has no polygon'),
    (segment('polygon'), 'has no polygon'),
    (lambda content: content['annotations'].append('nothing'), "'nothing' is no dict of an annotation: take it out"),
    (lambda content: content.pop('images'), 'is no COCO json of instances: KeyError'),
    (lambda content: content.update(annotations={}), "is no COCO json of instances: TypeError its 'annotations' is"),
    (drop('images', 'width'), r'image \d+.png has no width: write it into the json'),
    (drop('images', 'file_name'), r'image \d+ has no file_name: write it into the json'),
    (change_first(id=2), r'image \d+.png has the id of another image: give each its own id'),
    (change_first(height='64'), r"image \d+.png: \['64', 64\] has a height and width that cannot be"),
    (change_first(file_name=7), 'image 7 has a file_name that is no text: write it in quotes'),
    (drop('categories', 'name'), 'category 1 has no name: write it into the json'),
    (lambda content: content['categories'].append(dict(id=9, name='disc')),
     'has two categories of one name, disc: give each another name, or both one id'),
    (lambda content: content['categories'].reverse(), 'lists its categories as ring, star, triangle, rectangle, disc, '
     'metainfo.classes as disc, rectangle, triangle, star, ring: mmdet numbers labels as the json does and names them'),
]


@pytest.mark.parametrize(('change', 'message'), DAMAGE, ids=[str(i) for i in range(len(DAMAGE))])
def test_damage_is_named(damaged, change, message):
    with pytest.raises(PreflightError, match=message):
        damaged(change)


def test_all_offenders_are_counted_and_all_faults_named(damaged):
    def change(content):
        content['annotations'] = content['annotations'][:6]
        for annotation in content['annotations']:
            annotation.pop('area')
        content['annotations'][0]['iscrowd'] = 'no'
        content['annotations'][1].pop('bbox')

    with pytest.raises(PreflightError) as raised:
        damaged(change)
    lines = str(raised.value).splitlines()
    assert lines[0].endswith('train.json:')
    assert re.fullmatch(r'  annotation 1 of \S+, annotation 2 of \S+, annotation 3 of \S+, annotation 4 of \S+, '
                        r'annotation 5 of \S+, ... \(6\) lacks area \(6 are so\): write the area .*', lines[1])
    assert len(lines) == 4
    assert 'preflight.annotations=False' in lines[-1]


def test_a_size_that_is_not_the_files(damaged):
    with pytest.raises(PreflightError, match=r'\d+.png \(64x64, not 65x64\) has another size than its json says'):
        damaged(change_first(width=65), masks=False)


BOXES = {  # what boxes are written as, and what is said
    'corners': (lambda x, y, width, height: [x, y, x + width, y + height],
                'reaches beyond its image, and all boxes could be corners x1, y1, x2, y2'),
    'centres': (lambda x, y, width, height: [x + width / 2, y + height / 2, width, height],
                'reaches beyond its image, and no box would as centre x, y, width, height .*: write .x - width / 2'),
    'parts': (lambda *box: [side / 64 for side in box],
              r'each of \d+ annotations has boxes of no more than one pixel: where they are parts of width and height'),
}


@pytest.mark.parametrize('kind', BOXES)
def test_boxes_that_are_written_in_another_way(damaged, kind):
    change, message = BOXES[kind]

    def changed(content):
        for annotation in content['annotations']:
            annotation['bbox'] = change(*annotation['bbox'])

    with pytest.raises(PreflightError, match=message):
        damaged(changed, trained=False)


def all_crowds(content):
    for annotation in content['annotations']:
        annotation['iscrowd'] = 1


def without_labels(content):
    content.pop('annotations')
    for image in content['images']:
        image['file_name'] = f'gone/{image["file_name"]}'


@pytest.mark.parametrize(('change', 'needs', 'message'), [
    (without_labels, dict(labelled=True), 'none of its 3 images has an annotated object to learn from. To run all the'),
    (annotate_nothing, dict(labelled=True, trained=False), "object that COCO's evaluation counts, and each AP"),
    (all_crowds, dict(labelled=True, trained=False), "object that COCO's evaluation counts, and each AP would be -1"),
])
def test_labels_that_are_read_are_there(damaged, change, needs, message):
    """The lack of labels is said first, whatever else there is to say of the images."""
    with pytest.raises(PreflightError, match=message):
        damaged(change, **needs)


def test_a_byte_order_mark(drawn, tmp_path):
    (tmp_path / 'bom.json').write_bytes(b'\xef\xbb\xbf' + (drawn / 'annotations/train.json').read_bytes())
    with pytest.raises(PreflightError, match='begins with a byte order mark, .* save it as UTF-8 without BOM'):
        check_annotations(str(tmp_path / 'bom.json'), None, CLASSES)


@pytest.mark.parametrize(('change', 'said'), [
    (set_first(bbox=[500, 500, 20, 20]), r'1 boxes lie wholly outside their images, are not trained on, and count as '
                                         'missed in evaluation: 1'),
    (set_first(bbox=[-3, 3, 90, 9]), r'1 boxes reach beyond their images: \[-3, 3, 90, 9\] of \d+.png \(64x64\)'),
    (lambda content: content.pop('annotations'), 'has no annotations: nothing can be learned from it but with'),
    (annotate_nothing, 'has no annotations'),
    (set_first(ignore=1), "1 have ignore=1 and are not trained on; COCO's evaluation counts them all the same: 1"),
    (lambda content: content['images'].append(dict(content['images'][0], id=99)),
     r'1 files are listed more than once, and count as often: \d+.png'),
    (lambda content: content['annotations'].append(dict(content['annotations'][0], id=999)),
     'objects are annotated more than once, by the same box; all but one count as missed .* in the images: 1'),
])
def test_what_mmdet_passes_over_is_logged(damaged, monkeypatch, change, said):
    warnings = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', warnings.append)
    damaged(change)
    assert any(re.search(said, line) for line in warnings)


@pytest.mark.parametrize(('change', 'needs'), [
    (drop('annotations', 'iscrowd'), dict(evaluated=False)), (set_first(id=0), dict(evaluated=False)),
    (set_first(id='one'), dict(evaluated=False)), (set_first(id='101'), {}), (all_areas(1e-4), dict(evaluated=False)),
    (drop('annotations', 'segmentation'), dict(masks=False)), (segment([]), dict(masks=False)),
    (segment(dict(size=[1, 1])), dict(masks=False)),
    (lambda content: content['categories'].reverse(), dict(ordered=False)),
    (lambda content: [each.update(bbox=[1, 1, 0, 0]) for each in content['annotations']], dict(trained=False)),
    (annotate_nothing, dict(filter_cfg=dict(filter_empty_gt=False))),
])
def test_what_a_run_does_not_need_is_not_asked_for(damaged, change, needs):
    damaged(change, **needs)


def test_pictures_that_the_filter_leaves_out_need_not_be_there(damaged):
    def without_first(content):
        first = content['images'][0]
        first['file_name'] = 'gone.png'
        content['annotations'] = [each for each in content['annotations'] if each['image_id'] != first['id']]

    damaged(without_first, filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(PreflightError, match='gone.png is not there'):
        damaged(without_first)


@pytest.mark.parametrize('filter_cfg', [dict(min_size=65), dict(filter_empty_gt=True)])
def test_nothing_left_after_mmdets_filters(damaged, filter_cfg):
    with pytest.raises(PreflightError, match=r'none of its 3 images is left after filter_cfg={.*}; lower min_size'):
        damaged(annotate_nothing, filter_cfg=filter_cfg)


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
    with pytest.raises(PreflightError, match=f'{image.name} is truncated or no picture, of 2 images'):
        check(cfg, training=True)
    image.unlink()
    with pytest.raises(PreflightError, match=f'{image.name} is not there, of 2 images'):
        check(cfg, training=True)
    cfg.preflight = dict(annotations=False)
    check(cfg, training=True)


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
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'NoDevFiles')  # by Slurm, to a job without GPUs
    check(cfg, training=True)


def test_a_training_set_that_its_filter_empties(cfg):
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=1000)
    with pytest.raises(RunError, match='The training set is empty: it has no sample, or its filter_cfg left none'):
        runner.train([cfg.filename, '--work-dir', cfg.work_dir, '--cfg-options', f'data_root={cfg.data_root}',
                      'train_dataloader.dataset.filter_cfg.min_size=1000', 'preflight.annotations=False'])


@pytest.mark.parametrize(('backend_args', 'message'), [
    (dict(backend='lmdb', db_path='images.lmdb'), None), (None, "image folder '.*nowhere' does not exist"),
    (dict(backend='local'), "image folder '.*nowhere' does not exist")])
def test_pictures_that_the_pipeline_loads_from_elsewhere(drawn, backend_args, message):
    """Their json may lie on the disk all the same."""
    for prefix in ('', 'nowhere'):
        cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dict(
            type='CocoDataset', data_root=str(drawn), ann_file='annotations/train.json', data_prefix=dict(img=prefix),
            metainfo=dict(classes=CLASSES), pipeline=[dict(type='LoadImageFromFile', backend_args=backend_args)]))))
        if message is None:
            check_data_sets(cfg, ('train',))
        else:
            with pytest.raises(PreflightError, match=message if prefix else 'is not there, of 3 images'):
                check_data_sets(cfg, ('train',))
