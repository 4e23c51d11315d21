"""Classes without an image or an object are told in red: figures are not of them, though nothing else says so."""

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import VOCDataset, WIDERFaceDataset, XMLDataset
from mmdet.evaluation import VOCMetric
from mmengine.evaluator import Evaluator
from PIL import Image
from small_runs import CLASSIFIER, DETECTOR

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.absent import tell_absent_objects, tell_unnamed
from rkan_mm.preflight.evaluators import check_evaluator
from rkan_mm.preflight.images import ORIENTATION, check_pictures
from rkan_mm.preflight.objects import check_objects

VAL = "dict(val_dataloader['dataset'], indices={})"
LIST = """
train_dataloader['dataset'].update(ann_file='{folder}/list.txt', classes=None)
val_dataloader['dataset'].update(ann_file='{folder}/list.txt', classes=None, data_prefix='train')
"""
TOLD = {
    'a validation that is cut to one class': (
        f'val_dataloader = dict(val_dataloader, dataset={VAL.format(2)})\n',
        'CustomDataset of the validation has no images of 2 of 3 classes (dog, owl), of which its figures say nothing. '
        "Its indices leave them out: type='rkan_mm.BalancedSubset' takes as many"),
    'a validation within a wrapper': (
        f"val_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[{VAL.format(2)}, {VAL.format([1, 2])}])\n",
        'CustomDataset of the validation has no images of 1 of 3 classes (owl), of which its figures say nothing.'),
    'a training that is cut to one class': (
        "train_dataloader = dict(train_dataloader, dataset=dict(train_dataloader['dataset'], indices=2))\n",
        'CustomDataset of the train has no images of 2 of 3 classes (dog, owl), which cannot be learned. Its indices'),
    'a list without names of classes': (
        LIST, 'CustomDataset of the validation has no images of 1 of 3 classes (number 1), of which its figures say'),
}
NOT_TOLD = {
    'parts that have all': f"""
val_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[{VAL.format(2)}, {VAL.format([2, 3, 4, 5])}])
""",
    'a balanced subset': """
val_dataloader['dataset'] = dict(type='rkan_mm.BalancedSubset', per_class=1, dataset=val_dataloader['dataset'])
""",
    'several at random': f'val_dataloader = dict(val_dataloader, dataset={VAL.format([0, 2, 5])})\n',
}


@pytest.mark.parametrize('case', TOLD)
def test_classes_without_an_image(printed, tmp_path, case):
    lines, said = TOLD[case]
    (tmp_path / 'list.txt').write_text('cat/0.png 0\ncat/1.png 0\nowl/0.png 2\nowl/1.png 2\n')
    assert f'WARNING: {said}' in printed(CLASSIFIER, lines.replace('{folder}', str(tmp_path)))


@pytest.mark.parametrize('case', NOT_TOLD)
def test_classes_with_images(printed, case):
    assert 'WARNING: ' not in printed(CLASSIFIER, NOT_TOLD[case])


@pytest.mark.parametrize('change', ['none', 'crowds'])
def test_classes_without_an_object(printed, small_data, tmp_path, change):
    content = json.loads((small_data / 'shapes/annotations/val.json').read_text())
    first = content['categories'][0]
    own = [each for each in content['annotations'] if each['category_id'] == first['id']]
    for annotation in own:
        annotation['iscrowd'] = 1
        if change == 'none':
            content['annotations'].remove(annotation)
    (tmp_path / 'val.json').write_text(json.dumps(content))
    lines = f"""
val_dataloader['dataset'].update(ann_file='{tmp_path}/val.json')
val_evaluator.update(ann_file='{tmp_path}/val.json')
"""
    assert (f'WARNING: CocoMetric of the validation gives the mean of 4 classes alone: its data have no object of 1 of '
            f'5 classes ({first["name"]}).') in printed(DETECTOR, lines)


@pytest.mark.parametrize(('limit', 'told'), [(1, True), (20, False)])
def test_fewer_boxes_than_objects(printed, small_data, limit, told):
    content = json.loads((small_data / 'shapes/annotations/val.json').read_text())
    most = max(sum(each['image_id'] == image['id'] for each in content['annotations']) for image in content['images'])
    said = f'WARNING: model.test_cfg.max_per_img={limit} leaves out objects: a picture of the validation has {most}.'
    assert (said in printed(DETECTOR, f"model['test_cfg'].update(max_per_img={limit})\n")) == told


def test_panoptic_data_without_a_class(capsys):
    infos = [dict(instances=[dict(bbox_label=0)], segments_info=[dict(category=0, is_thing=1), dict(category=2)])]
    tell_absent_objects(infos, ('cat', 'dog', 'sky'), ['CocoPanopticMetric'], 'test')
    assert ('WARNING: CocoPanopticMetric of the test gives the mean of 2 classes, and 0 for others that are predicted: '
            'its data have no object of 1 of 3 classes (dog).') in capsys.readouterr().out
    infos[0]['segments_info'].append(dict(category=1, is_thing=1))
    tell_absent_objects(infos, ('cat', 'dog', 'sky'), ['CocoPanopticMetric'], 'test')
    assert not capsys.readouterr().out


OBJECT = '<object><name>{}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>'
OF_XML = """
train_dataloader['dataset'].update(
    type='XMLDataset', data_root='{folder}', ann_file='list.txt', img_subdir='', ann_subdir='',
    data_prefix=dict(sub_data_root=''))
"""


@pytest.fixture
def xml(tmp_path):
    """Three pictures with XML files beside them."""
    for i, names in enumerate((('disc', 'Ring'), ('ring', ), ('Ring', 'Star'))):
        cv2.imwrite(str(tmp_path / f'{i}.jpg'), np.zeros((64, 64, 3), np.uint8))
        (tmp_path / f'{i}.xml').write_text('<annotation><size><width>64</width><height>64</height></size>'
                                           f'{"".join(map(OBJECT.format, names))}</annotation>')
    (tmp_path / 'list.txt').write_text('0\n1\n2\n')
    return tmp_path


def test_objects_that_no_class_is_named_after(printed, xml):
    said = ("WARNING: XMLDataset of the train leaves out objects that its classes do not name: 'Ring' (2), 'Star' (1). "
            'If they are of a class, write its name as they do.')
    lines = OF_XML.replace('{folder}', str(xml))
    assert said in printed(DETECTOR, lines)
    for path in xml.glob('*.xml'):
        path.write_text(path.read_text().replace('Ring', 'ring').replace('Star', 'star'))
    assert 'leaves out objects' not in printed(DETECTOR, lines)


@pytest.mark.parametrize(('old', 'new', 'said'), [
    ('</annotation>', '', r'1.xml \(.*\) is no XML, or cut off: get it anew, or take its name out of the list'),
    ('<width>64', '<width>64.0', '1.xml has a size without whole numbers as width and height: write both in pixels'),
    ('<name>ring</name>', '', '1.xml has an object without a name: write the name of its class'),
    ('<bndbox>', '<difficult>Unspecified</difficult><bndbox>', '1.xml has an object with a difficult that is no whole'),
    ('<bndbox>', '<difficult/><bndbox>', '1.xml has an object with a difficult that is no whole number'),
    ('<xmin>5</xmin>', '', '1.xml has an object without a bndbox of xmin, ymin, xmax, ymax: write its corners in'),
    ('<xmin>5', '<xmin>nan', '1.xml has an object without a bndbox of xmin'),
    ('ring</name><bndbox>', 'owl</name><box>', None),
    ('<width>64</width>', '<width>0</width>', None),
])
def test_xml_files_that_mmdet_does_not_read(printed, xml, old, new, said):
    path = xml / '1.xml'
    text = path.read_text().replace(old, new)
    path.write_text(text.replace('</bndbox>', '</box>') if '<box>' in new else text)
    lines = OF_XML.replace('{folder}', str(xml))
    with pytest.raises(PreflightError, match=f'list.txt: .*{said}') if said else nullcontext():
        printed(DETECTOR, lines)


def test_xml_files_that_are_not_there(printed, xml):
    (xml / 'list.txt').write_text('0.jpg\n1.jpg\n2\n')
    with pytest.raises(PreflightError, match=r'list.txt: .*0.jpg.xml \(No such file or directory\), .*1.jpg.xml .* '
                       r'cannot be read \(2 are so\): names in the list have no extension and no blanks, and'):
        printed(DETECTOR, OF_XML.replace('{folder}', str(xml)))


def test_xml_files_without_a_width(printed, xml):
    for name in ('0', '1'):
        (xml / f'{name}.xml').write_text((xml / f'{name}.xml').read_text().replace('<width>64', '<width>0'))
    (xml / '2.xml').write_text((xml / '2.xml').read_text().replace('Star', 'star'))
    lines = OF_XML.replace('{folder}', str(xml)) + """
train_dataloader['dataset'].update(filter_cfg=dict(min_size=32))
"""
    out = printed(DETECTOR, lines)
    assert '2 of 3 XML files have a width or height of 0, such as ' in out
    assert '0.xml: by filter_cfg.min_size=32 their pictures are left out. Write those of the picture, or leav' in out


@pytest.mark.parametrize('test_mode', [True, False])
def test_pictures_that_a_filter_leaves_out_of_a_validation(xml, capsys, test_mode):
    data = of_xml(xml, filter_cfg=dict(filter_empty_gt=True), test_mode=test_mode)
    tell_unnamed(data, 'train')
    told = 'XMLDataset of the validation leaves out 2 of 3 pictures (by filter_cfg), and what is found there'
    assert told not in capsys.readouterr().out
    tell_unnamed(data, 'validation')
    assert (told in capsys.readouterr().out) == (not test_mode)


def test_xml_files_that_lie_elsewhere_are_passed_over(xml, capsys):
    """A check that looked for them beside the others would say that it failed."""
    tell_unnamed(WIDERFaceDataset(ann_file=str(xml / 'list.txt'), data_prefix=dict(img='x'), lazy_init=True), 'train')
    assert not capsys.readouterr().out


def test_pictures_of_xml_files_are_there(printed, xml):
    (xml / '1.jpg').unlink()
    (xml / '2.jpg').write_bytes((xml / '2.jpg').read_bytes()[:99])
    with pytest.raises(PreflightError, match='XMLDataset of the train:\n.*1.jpg is not th.*\n.*2.jpg is truncated or'):
        printed(DETECTOR, OF_XML.replace('{folder}', str(xml)))
    for path in xml.glob('*.jpg'):
        path.rename(path.with_suffix('.JPG'))
    with pytest.raises(PreflightError, match='0.jpg, .*2.jpg is not there, but with the extension .JPG .2 are so.: '
                                             'write it so in the ann_file; of XML files mm reads pictures with'):
        check_pictures(of_xml(xml), 'train')


def test_pictures_that_nobody_names():
    """A data set of mm's own kind, without a list of what is in it."""
    known = dict(__module__='mmpretrain.datasets', __len__=lambda self: 1,
                 pipeline=SimpleNamespace(transforms=[LoadImageFromFile()]))
    assert check_pictures(type('Unlisted', (), known)(), 'train') is None


def of_xml(folder, **given):
    return XMLDataset(ann_file=str(folder / 'list.txt'), img_subdir='', ann_subdir='', data_prefix=dict(
        sub_data_root=str(folder)), metainfo=dict(classes=('ring', )), pipeline=[dict(type='LoadImageFromFile')],
        **given)


@pytest.mark.parametrize(('lines', 'columns', 'orientation', 'told'), [
    (64, 64, 6, None), (32, 64, 1, '64x32, not 64x64'), (64, 32, 6, '64x32, turned by its EXIF orientation, not 64x64'),
    (0, 64, 6, None)])
def test_xml_files_of_another_size(xml, capsys, lines, columns, orientation, told):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for path in xml.glob('*.jpg'):
        Image.new('RGB', (columns, lines or 64)).save(path, exif=exif)
        text = path.with_suffix('.xml')
        text.write_text(text.read_text() if lines else text.read_text().replace('>64<', '>0<'))
    check_pictures(of_xml(xml), 'train')
    out = capsys.readouterr().out
    said = ('WARNING: 3 of 3 pictures of the train that were looked at are loaded in another size than their '
            f'annotations say, such as {xml}/0.jpg ({told}): look whether')
    assert said in out if told else not out


class Marked(XMLDataset):
    METAINFO: ClassVar[dict] = dict(classes=('ring', 'disc', 'Ring'))


class Own(Marked):
    def parse_data_info(self, info):
        return dict(img_path='elsewhere', height=9, width=9, instances=[dict(bbox=[0, 0, 0, 0], bbox_label=9)])


def test_a_data_set_that_but_names_classes(xml, capsys):
    """What it does not do itself is done by mm, as in a data set of mm."""
    given = dict(ann_file=str(xml / 'list.txt'), img_subdir='', ann_subdir='', data_prefix=dict(sub_data_root=str(xml)),
                 pipeline=[dict(type='LoadImageFromFile')])
    marked, own = Marked(**given), Own(**given)
    tell_unnamed(marked, 'train')
    assert "Marked of the train leaves out objects that its classes do not name: 'Star' (1)." in capsys.readouterr().out
    (xml / '1.jpg').unlink()
    with pytest.raises(PreflightError, match='Marked of the train: .*1.jpg is not there'):
        check_pictures(marked, 'train')
    marked._metainfo['classes'] = ('ring', )
    with pytest.raises(PreflightError, match='Marked of the train: .*has an object of the label 1, and there are 1'):
        check_objects(marked, 'train')
    for check in (tell_unnamed, check_pictures, check_objects):
        check(own, 'train')
    assert not capsys.readouterr().out


OF_VOC = """
val_dataloader['dataset'].update(
    type='VOCDataset', data_root='{folder}', ann_file='list.txt', img_subdir='', ann_subdir='',
    data_prefix=dict(sub_data_root='VOC2007'), pipeline=[
        load[0], scale, load[1], dict(type='PackDetInputs', meta_keys=keys)])
val_evaluator = dict(type='VOCMetric')
"""


def test_rows_that_are_called_as_those_of_voc(printed, xml):
    (xml / 'VOC2007').symlink_to(xml)
    lines = OF_VOC.replace('{folder}', str(xml))
    out = printed(DETECTOR, lines)
    assert ("WARNING: VOCMetric of the validation gives the rows of its table the names of VOC's own classes, since "
            'the sub_data_root of VOCDataset has VOC2007 in its name: disc will be called aeroplane. Call that') in out
    assert '| aeroplane | ' in out
    (xml / 'VOC2007').rename(xml / 'cells')
    out = printed(DETECTOR, lines.replace('VOC2007', 'cells'))
    assert 'will be called' not in out
    assert '| disc      | ' in out


@pytest.mark.parametrize(('names', 'message'), [
    (('aeroplane', 'bicycle'), None), (None, None),
    (tuple(map(str, range(21))), 'there are 20 of them, and 21 classes, at which it stops')])
def test_names_of_voc(xml, capsys, names, message):
    (xml / '0.xml').write_text((xml / '0.xml').read_text().replace('disc', (names or ['aeroplane'])[0]))
    (xml / 'VOC2012').symlink_to(xml)
    data = VOCDataset(ann_file=str(xml / 'list.txt'), img_subdir='', ann_subdir='', metainfo=names and dict(
        classes=names), data_prefix=dict(sub_data_root=str(xml / 'VOC2012')))
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=data), evaluator=Evaluator(VOCMetric()),
                           runner=SimpleNamespace(cfg={}))
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        check_evaluator(loop, 'test')
    assert 'will be called' not in capsys.readouterr().out
