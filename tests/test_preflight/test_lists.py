"""Lists of pictures and labels whose lines are not what mmpretrain's CustomDataset reads."""

from contextlib import nullcontext

import pytest
from mmengine.registry import DATASETS

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.lists import check_list, tell_names

LINES = {  # of a list of pictures, and what is said
    'a\tcat.png 0\r\nb/1.png 12\r\n': None,
    'my cat.png 3\nc.png  0': None,
    'cam.2 12 3\n2023.10 11 3': None,
    'a.png 0\nb.png\t1\nc.png,1\n': "line 2 .'b.png.*t1'., line 3 .'c.png,1'. has no space before its number .2 are so",
    'a.png 0\n\nb.png 1\n': 'line 2 .... is empty: take it out',
    'name label\na.png 0': "line 1 .'name label'. ends in no number of a class: write path, space, number of the class",
    'a.png cat\n': "line 1 .'a.png cat'. ends in no number of a class",
    'a.png 1.0\n': "line 1 .'a.png 1.0'. ends in no number of a class",
    'a.png\n': '; without labels set with_label=False. To run all the same: --cfg-options preflight.annotations=False',
    'a.png,1 2\n': 'line 1 .* has several numbers behind the path',
    'a.PNG 0 1\n': 'line 1 .* has several numbers behind the path, .*: write one, or take MultiLabelDataset',
    '\ufeffa.png 0\n': 'line 1 .* begins with a byte order mark, .*: save the file as UTF-8 without BOM',
}
ALONE = {
    'a.png\nmy cat 1.png\nfolder 1/2\nimg.v2 1': None,
    'a.png\nb.png 1\n': 'line 2 .* has a number behind the path, .*: take it out, or set with_label=True',
    'a.png\n\n': 'line 2 .* is empty',
}


@pytest.mark.parametrize(('lines', 'labelled'), [*((each, True) for each in LINES),
                                                 *((each, False) for each in ALONE)])
def test_lines_of_a_list_of_pictures(tmp_path, lines, labelled):
    cls, message = DATASETS.get('mmpretrain.CustomDataset'), (LINES if labelled else ALONE)[lines]
    (tmp_path / 'list.txt').write_bytes(lines.encode())
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        check_list(dict(data_root=str(tmp_path), ann_file='list.txt', with_label=labelled), cls)
    if message is None:  # mmpretrain reads what is let through
        data = cls(data_root=str(tmp_path), ann_file='list.txt', with_label=labelled)
        assert len(data) == len(lines.splitlines())


def test_a_list_that_imagenet_finds_by_its_split(tmp_path):
    cls = DATASETS.get('mmpretrain.ImageNet')
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta/train.txt').write_bytes(b'a.png 0\nb.png,1\n')
    for split in ('val', 'train'):
        with pytest.raises(PreflightError, match='meta/train.txt: line 2') if split == 'train' else nullcontext():
            check_list(dict(type='ImageNet', data_root=str(tmp_path), split=split), cls)
    (tmp_path / 'meta/train.txt').write_bytes('猫.png 0\n狗.png 1'.encode('gbk'))
    with pytest.raises(PreflightError, match="ImageNet: '.*train.txt' is no text in UTF-8 .*: save it as such"):
        check_list(dict(type='ImageNet', data_root=str(tmp_path), split='train'), cls)


@pytest.mark.parametrize(('text', 'told'), [
    ('cat\r\nmy dog\r\n', ''), ('cat\n\n', "line 2 of"), ('\ufeffcat\ndog', "line 1 of")])
def test_names_of_classes_in_a_file(tmp_path, capsys, text, told):
    (tmp_path / 'classes.txt').write_bytes(text.encode())
    tell_names(dict(type='CustomDataset', classes=str(tmp_path / 'classes.txt')))
    out = capsys.readouterr().out
    assert (told in out and 'is no name of a class' in out) if told else not out
    tell_names(dict(type='CustomDataset', classes=('cat',)))
