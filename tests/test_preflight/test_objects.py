"""Objects of detectors' data of all kinds that come to nothing, or to another class than they are of."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmdet.datasets import BaseDetDataset, CrowdHumanDataset
from mmdet.models import FusedSemanticHead, PanopticFPNHead, RetinaNet
from PIL import Image
from small_runs import DETECTOR

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.images import check_pictures
from rkan_mm.preflight.objects import check_maps, check_objects

LOAD = [dict(type='LoadAnnotations', with_bbox=True)]


def listed(folder, *pictures):
    """The json of mmdet itself, of one picture for each list of objects, as label and box."""
    path = folder / 'list.json'
    path.write_text(json.dumps(dict(metainfo=dict(classes=('cat', 'dog')), data_list=[
        dict(img_path=f'{i}.jpg', height=9, width=9, instances=[
            dict(bbox_label=label, bbox=box, ignore_flag=ignored) for label, box, ignored in objects])
        for i, objects in enumerate(pictures)])))
    return dict(ann_file=str(path), pipeline=LOAD)


WHOLE = [0, 0, 8, 8]
CASES = {
    'labels from 1': ([[(1, WHOLE, 0), (2, WHOLE, 0)], [(2, WHOLE, 0)]], r'.* of the test: 0.jpg has an object of the '
                      r'label 2, and there are 2 classes \(cat, dog\), with the labels 0 to 1 \(2 images\)\.'),
    'labels from 0': ([[(0, WHOLE, 0), (1, WHOLE, 0)]], None),
    'what is ignored has none': ([[(-1, WHOLE, 1), (1, WHOLE, 0)]], None),
}


@pytest.mark.parametrize('case', CASES)
def test_labels_of_objects(tmp_path, capsys, case):
    """Of a label that is the number of classes heads make background, in silence."""
    pictures, message = CASES[case]
    data = BaseDetDataset(**listed(tmp_path, *pictures), test_mode=True)
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        check_objects(data, 'test')
    assert not capsys.readouterr().out


class OfNumpy(BaseDetDataset):
    def load_data_list(self):
        infos = super().load_data_list()
        for instance in infos[0]['instances']:
            instance['bbox_label'] = np.int64(instance['bbox_label'])
        return infos


def test_labels_of_numpy_and_for_regions_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(OfNumpy, '__module__', 'mmdet.datasets')
    data = OfNumpy(**listed(tmp_path, [(2, WHOLE, 0)]), test_mode=True)
    with pytest.raises(PreflightError, match='0.jpg has an object of the label 2, and there are 2 classes'):
        check_objects(data, 'test')
    check_objects(data, 'test', by_labels=False)


def test_regions_are_learned_from_any_labels(printed, small_data, tmp_path):
    """RPN sets all labels to 0."""
    content = json.loads((small_data / 'shapes/annotations/train.json').read_text())
    data = [dict(img_path=str(small_data / 'shapes/train' / image['file_name']), height=64, width=64, instances=[
        dict(bbox_label=annotation['category_id'] + 9, bbox=[8, 8, 32, 32], ignore_flag=0)
        for annotation in content['annotations'] if annotation['image_id'] == image['id']])
        for image in content['images']]
    (tmp_path / 'list.json').write_text(json.dumps(dict(metainfo=dict(classes=('a', 'b')), data_list=data)))
    lines = f"""
train_dataloader['dataset'].update(type='BaseDetDataset', ann_file='{tmp_path}/list.json', data_prefix=dict())
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
{{}}"""
    with pytest.raises(PreflightError, match='has an object of the label '):
        printed(DETECTOR, lines.format(''))
    rpn = """
model.update(type='RPN', rpn_head=dict(type='RPNHead', in_channels=8, feat_channels=8), train_cfg=dict(
    rpn=model['train_cfg']), test_cfg=dict(rpn=model['test_cfg']))
del model['bbox_head']
"""
    assert 'Saving checkpoint at 1 epochs' in printed(DETECTOR, lines.format(rpn))


def test_boxes_that_are_no_corners(tmp_path, capsys):
    check_objects(BaseDetDataset(**listed(tmp_path, [(0, [5, 5, 3, 9], 0), (1, WHOLE, 0), (1, [5, 5, 3, 3], 1)])),
                  'train')
    assert ('WARNING: 1 of 2 boxes in BaseDetDataset of the train have no width or no height, such as [5, 5, 3, 9] of '
            '0.jpg: mmdet reads them as corners') in capsys.readouterr().out


def test_pixels_without_their_labels(tmp_path, capsys):
    for name in ('0.jpg', '0.png', '1.jpg'):
        cv2.imwrite(str(tmp_path / name), np.zeros((9, 9, 3), np.uint8))
    given = listed(tmp_path, [], [])
    content = json.loads((tmp_path / 'list.json').read_text())
    for i, info in enumerate(content['data_list']):
        info.update(img_path=f'{tmp_path}/{i}.jpg', seg_map_path=f'{tmp_path}/{i}.png')
    (tmp_path / 'list.json').write_text(json.dumps(content))
    load = dict(type='LoadImageFromFile')
    check_pictures(BaseDetDataset(**given | dict(pipeline=[load, *LOAD])), 'train')
    cv2.imwrite(str(tmp_path / '1.png'), np.zeros((5, 5), np.uint8))  # a segmentation map of another size
    data = BaseDetDataset(**given | dict(pipeline=[load, dict(type='LoadAnnotations', with_seg=True)]))
    capsys.readouterr()
    check_pictures(data, 'train')
    assert not capsys.readouterr().out
    cv2.imwrite(str(tmp_path / '0.jpg'), np.zeros((9, 8, 3), np.uint8))
    check_pictures(data, 'train')
    assert 'WARNING: 1 of 2 pictures of the train that were looked at are loaded in another' in capsys.readouterr().out
    (tmp_path / '1.png').unlink()
    data = BaseDetDataset(**given | dict(pipeline=[load, dict(type='LoadAnnotations', with_seg=True)]))
    with pytest.raises(PreflightError, match='BaseDetDataset of the train: .*1.png is not there, but with the ext'):
        check_pictures(data, 'train')


@pytest.mark.parametrize(('color_type', 'fails'), [('color', True), ('unchanged', False)])
def test_pictures_that_the_pipeline_does_not_read(printed, small_data, tmp_path, color_type, fails):
    """Pillow knows TIFF files of floats, and so does OpenCV, but not as colours."""
    listed(tmp_path, [])
    content = json.loads((tmp_path / 'list.json').read_text())
    content['data_list'][0]['img_path'] = f'{tmp_path}/0.tif'
    (tmp_path / 'list.json').write_text(json.dumps(content))
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / '0.tif')
    load = dict(type='LoadImageFromFile', color_type=color_type)
    with pytest.raises(PreflightError, match='0.tif is truncated or no picture: it is TIFF of the mode F, which the '
                       'pipeline does not read: write it as PNG or JPEG of') if fails else nullcontext():
        check_pictures(BaseDetDataset(ann_file=f'{tmp_path}/list.json', pipeline=[load]), 'test')
    if fails:
        shutil.copytree(small_data / 'shapes', tmp_path / 'shapes')
        shutil.copy(tmp_path / '0.tif', tmp_path / 'shapes/val/000001.png')
        with pytest.raises(PreflightError, match='000001.png is truncated or no picture, of 2 images: it is TIFF of'):
            printed(DETECTOR.replace("'shapes'", repr(str(tmp_path / 'shapes'))), '')


@pytest.mark.parametrize('kind', ['CocoDataset', 'BaseDetDataset'])
@pytest.mark.parametrize('spoil', [Path.unlink, lambda path: path.write_bytes(b'')])
def test_pictures_that_a_training_passes_over(printed, small_data, tmp_path, kind, spoil):
    shutil.copytree(small_data / 'shapes', tmp_path / 'shapes')
    content = json.loads((tmp_path / 'shapes/annotations/train.json').read_text())
    (tmp_path / 'list.json').write_text(json.dumps(dict(metainfo={}, data_list=[
        dict(img_path=f'train/{each["file_name"]}', height=64, width=64, instances=[
            dict(bbox_label=0, bbox=WHOLE, ignore_flag=0)]) for each in content['images']])))
    lines = '' if kind == 'CocoDataset' else f"""
train_dataloader['dataset'].update(type='{kind}', ann_file='{tmp_path}/list.json', data_prefix=dict(img_path=''))
"""
    text = DETECTOR.replace("'shapes'", repr(str(tmp_path / 'shapes')))
    spoil(tmp_path / 'shapes/train/000001.png')
    with pytest.raises(PreflightError, match='000001.png is (not there|truncated)'):
        printed(text, lines)
    lines += "load[0]['ignore_empty'] = True\n"
    assert 'Saving checkpoint at 1 epochs' in printed(text, lines)
    spoil(tmp_path / 'shapes/train/000000.png')
    with pytest.raises(PreflightError, match='000001.png is (not there|truncated)'):
        printed(text, lines)


def test_pixels_of_a_coco_json_without_their_labels(printed, small_data, tmp_path):
    """As the maps of things and stuff that HTC and panoptic FPN learn from."""
    (tmp_path / '000000.png').write_bytes((small_data / 'shapes/train/000000.png').read_bytes())
    with pytest.raises(PreflightError, match='CocoDataset of the train: .*000001.png is not there: check data_prefix'):
        printed(DETECTOR, f"""
train_dataloader['dataset']['data_prefix']['seg'] = {str(tmp_path)!r}
load[1]['with_seg'] = True
""")


HEAD = FusedSemanticHead(2, 0, num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3)
MAPS = {
    'as the head has them': (np.diag([2] * 8 + [255]), None),
    'a label too much': (np.eye(9) * 3, r'1.png \(3\) has pixels of labels that the head has no class for; it has 0 to '
                         '2: write others, or 255 for what is ignored. To run all'),
    'colours': (np.zeros((9, 9, 3)), "1.png has colours, .*read it by LoadAnnotations.imdecode_backend='pillow'"),
}


def of_pixels(folder, *maps):
    """Data with a map of labels of pixels for each picture."""
    for i, labels in enumerate(maps):
        cv2.imwrite(f'{folder}/{i}.png', labels.astype(np.uint8))
    (folder / 'list.json').write_text(json.dumps(dict(metainfo={}, data_list=[
        dict(img_path=f'{i}.jpg', seg_map_path=f'{folder}/{i}.png', instances=[]) for i in range(len(maps))])))
    return BaseDetDataset(ann_file=f'{folder}/list.json', pipeline=[dict(type='LoadAnnotations', with_seg=True)])


@pytest.mark.parametrize('case', MAPS)
@pytest.mark.parametrize('head', [HEAD, PanopticFPNHead(num_things_classes=1, num_stuff_classes=2, in_channels=4)])
def test_labels_of_pixels(tmp_path, capsys, case, head):
    data = of_pixels(tmp_path, np.ones((9, 9)), MAPS[case][0])
    with pytest.raises(PreflightError, match=MAPS[case][1]) if MAPS[case][1] else nullcontext():
        check_maps(SimpleNamespace(roi_head=SimpleNamespace(semantic_head=head)), data, 'train')
    check_maps(SimpleNamespace(), data, 'train')
    assert not capsys.readouterr().out


@pytest.mark.parametrize('attribute', ['loss_seg', 'criterion', 'ignore_index'])
def test_another_label_that_the_loss_passes_over(tmp_path, capsys, attribute):
    value = 200 if attribute == 'ignore_index' else SimpleNamespace(ignore_index=200)
    head = type('Head', (), {attribute: value, 'num_classes': 3, '__module__': 'mmseg.models'})()
    for labels in (np.diag([1] * 8 + [200]), np.eye(9) * 200):
        check_maps(SimpleNamespace(decode_head=head), of_pixels(tmp_path, labels), 'train')
    assert capsys.readouterr().out.count('beside 200, which is ignored. Where 200 stands for a class, write 1.') == 1
    with pytest.raises(PreflightError, match=r'\(9\) has pixels .* write others, or 200 for what is ignored'):
        check_maps(SimpleNamespace(decode_head=head), of_pixels(tmp_path, np.diag([9] * 8 + [200])), 'train')


def test_labels_of_pixels_of_a_run(printed, small_data, tmp_path, monkeypatch):
    """A map of 0 and 255, as of black and white, has one label alone."""
    monkeypatch.setattr(RetinaNet, 'semantic_head', HEAD, raising=False)
    lines = f"""
train_dataloader['dataset']['data_prefix']['seg'] = {str(tmp_path)!r}
load[1]['with_seg'] = True
"""
    for name in ('000000', '000001'):
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.eye(64, dtype=np.uint8) * 255)
    assert 'WARNING: The maps of CocoDataset of the train that were looked at have pixels of the label 0 al' in printed(
        DETECTOR, lines)
    cv2.imwrite(str(tmp_path / '000001.png'), np.eye(64, dtype=np.uint8) * 9)
    with pytest.raises(PreflightError, match=r'000001.png \(9\) has pixels of labels that the head has no class for'):
        printed(DETECTOR, lines)


def test_pictures_without_a_size(printed, small_data, tmp_path):
    given = listed(tmp_path, [(0, WHOLE, 0)])
    content = json.loads((tmp_path / 'list.json').read_text())
    del content['data_list'][0]['width']
    content['data_list'][0]['img_path'] = str(small_data / 'shapes/train/000000.png')
    (tmp_path / 'list.json').write_text(json.dumps(content))
    with pytest.raises(PreflightError, match="KeyError: width .the annotations lack the width and height of pict"):
        printed(DETECTOR, f"""
train_dataloader['dataset'].update(type='BaseDetDataset', ann_file={given['ann_file']!r}, data_prefix=dict(img_path=''))
train_dataloader['batch_sampler'] = dict(type='AspectRatioBatchSampler')
""")


@pytest.mark.parametrize('ignored', [0, 1])
def test_no_object_to_learn_from(tmp_path, ignored):
    data = BaseDetDataset(**listed(tmp_path, [], [(0, WHOLE, ignored)]))
    with pytest.raises(PreflightError, match='BaseDetDataset of the train: none of its 2 pictures has an annotated '
                                             'object to learn from.') if ignored else nullcontext():
        check_objects(data, 'train')
    check_objects(data, 'test')
    check_objects(BaseDetDataset(**listed(tmp_path, []) | dict(pipeline=[])), 'train')  # it is to have none


@pytest.mark.parametrize(('metric', 'figure'), [
    ("type='VOCMetric'", 'VOCMetric would be 0'), ("type='CocoMetric'", 'CocoMetric would be -1'),
    ("type='CocoMetric', format_only=True, outfile_prefix='{folder}/found'", None),
])
def test_no_object_to_count(printed, small_data, tmp_path, metric, figure):
    """Where the metric has no json of its own, it is the data set that has none."""
    content = json.loads((small_data / 'shapes/annotations/val.json').read_text())
    (tmp_path / 'val.json').write_text(json.dumps(content | dict(annotations=[])))
    with pytest.raises(PreflightError, match=f'CocoDataset of the validation: none of its 2 images has an annotated '
                       f'object that counts, and each AP of {figure}. To run') if figure else nullcontext():
        printed(DETECTOR, f"""
val_dataloader['dataset']['ann_file'] = '{tmp_path}/val.json'
val_dataloader['dataset']['pipeline'] = [load[0], scale, load[1], dict(
    type='PackDetInputs', meta_keys=(*keys, 'instances'))]
val_evaluator = dict({metric.format(folder=tmp_path)})
""")


@pytest.mark.parametrize('polygons', [0, 1])
def test_masks_that_are_no_polygons(printed, small_data, tmp_path, polygons):
    content = json.loads((small_data / 'shapes/annotations/train.json').read_text())
    for annotation in content['annotations'][:polygons]:
        annotation['segmentation'] = [[1, 1, 9, 1, 9, 9]]
    (tmp_path / 'train.json').write_text(json.dumps(content))
    lines = f"""
train_dataloader['dataset'].update(ann_file='{tmp_path}/train.json', pipeline=[load[0], dict(
    type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False), scale, dict(type='PackDetInputs')])
"""
    said = 'as LoadAnnotations(poly2mask=False) takes polygons alone and the mask is RLE: set poly2mask=True.'
    if polygons:
        count = len(content['annotations'])
        assert (f'WARNING: CocoDataset of the train: {count - 1} of {count} objects would be left out, {said}'
                in printed(DETECTOR, lines))
    else:
        with pytest.raises(PreflightError) as error:
            printed(DETECTOR, lines)
        assert f'CocoDataset of the train: each object would be left out, {said}' in str(error.value)
    assert said not in printed(DETECTOR, lines.replace('poly2mask=False', 'poly2mask=True'))


def test_heads_and_bodies(tmp_path, capsys):
    """CrowdHuman gives what is ignored the label -1."""
    box = dict(fbox=[1, 1, 5, 5], hbox=[1, 1, 2, 2], vbox=[1, 1, 4, 4])
    (tmp_path / 'train.odgt').write_text(json.dumps(dict(ID='a', gtboxes=[
        dict(box, tag='person'), dict(box, tag='mask'), dict(box, tag='person', extra=dict(ignore=1))])))
    (tmp_path / 'id_hw_train.json').write_text('{"a": [9, 9]}')
    data = CrowdHumanDataset(data_root=str(tmp_path), ann_file='train.odgt', data_prefix=dict(img=''), pipeline=LOAD)
    capsys.readouterr()
    check_objects(data, 'train')
    assert not capsys.readouterr().out
