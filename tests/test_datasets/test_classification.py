"""SVHN, Tiny ImageNet and Caltech-256 on generated files in the layouts of their archives."""

import hashlib
import re
import shutil

import cv2
import numpy as np
import pytest
import scipy.io
from mmengine.registry import DATASETS, init_default_scope
from torchvision.datasets import SVHN


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


def build(kind, root, **args):
    return DATASETS.build(dict(type=f'rkan_mm.{kind}', data_root=str(root), **args))


def draw(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((64, 64, 3), value, np.uint8))


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (32, 32, 3, 5), np.uint8)
    for split in ('train', 'test'):
        path = tmp_path / f'{split}_32x32.mat'
        scipy.io.savemat(path, dict(X=images, y=np.array([[1], [10], [3], [9], [10]], np.uint8)))
        address, name, _ = SVHN.split_list[split]
        monkeypatch.setitem(SVHN.split_list, split, [address, name, hashlib.md5(path.read_bytes()).hexdigest()])
    return tmp_path, images


@pytest.mark.parametrize('split', ['train', 'test'])
def test_svhn(svhn, split):
    root, images = svhn
    data = build('SVHN', root, split=split)
    assert data.get_gt_labels().tolist() == [1, 0, 3, 9, 0]  # the digit 0 is 10 in the file
    np.testing.assert_array_equal(data[3]['img'], images[..., 3])
    assert tuple('0123456789') == data.CLASSES


def test_svhn_that_is_torn(svhn):
    path = svhn[0] / 'train_32x32.mat'
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'SVHN: .*train_32x32.mat is torn or another file, of md5 \w+ and not \w+. '
                                         r'Delete it. Get it with: wget -P .* http'):
        build('SVHN', svhn[0])


def test_svhn_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'SVHN: .*train_32x32.mat does not exist. Get it with: wget -P'):
        build('SVHN', tmp_path, download=False)


CLASSES = ('n01443537', 'n01629819', 'n04008634')


@pytest.fixture(params=['archive', 'sorted', 'sorted with the leftovers'])
def tiny(request, tmp_path):
    root = tmp_path / 'tiny-imagenet-200'
    inner = 'images/' if request.param == 'archive' else ''
    for i, name in enumerate(CLASSES):
        for j in range(3):
            draw(root / f'train/{name}/{inner}{name}_{j}.JPEG', 10 * i)
        (root / f'train/{name}/{name}_boxes.txt').touch()
    table = ''
    for j, i in enumerate((2, 0, 1, 0)):  # classes of val_0.JPEG, ...
        folder = 'images' if request.param == 'archive' else CLASSES[i]
        draw(root / f'val/{folder}/val_{j}.JPEG', 10 * i)
        table += f'val_{j}.JPEG\t{CLASSES[i]}\t0\t0\t62\t62\n'
    if request.param != 'sorted':
        (root / 'val/val_annotations.txt').write_text(table)
        (root / 'val/images').mkdir(exist_ok=True)
    return root


def test_tiny_imagenet(tiny):
    train = build('TinyImageNet', tiny, pipeline=[dict(type='LoadImageFromFile')])
    assert train.CLASSES == CLASSES
    assert train.get_gt_labels().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    val = build('TinyImageNet', tiny, split='val', pipeline=[dict(type='LoadImageFromFile')])
    assert val.CLASSES == CLASSES
    assert sorted(val.get_gt_labels().tolist()) == [0, 0, 1, 2]
    for data in (train, val):
        for sample in data:
            assert abs(int(sample['img'].mean()) - 10 * sample['gt_label']) <= 1


def test_tiny_imagenet_errors(tiny):
    with pytest.raises(ValueError, match="TinyImageNet: no split 'test'; there are train, val"):
        build('TinyImageNet', tiny, split='test')
    image = next((tiny / 'train' / CLASSES[1]).rglob('*.JPEG'))
    for path in (tiny / 'train' / CLASSES[1]).rglob('*.JPEG'):
        path.rename(tiny / path.name)
    with pytest.raises(ValueError, match=f'TinyImageNet: no images of {CLASSES[1]} in .*train'):
        build('TinyImageNet', tiny)
    shutil.rmtree(tiny / 'train' / CLASSES[1])
    with pytest.raises(ValueError, match=f"TinyImageNet: .* has the class '{CLASSES[1]}', which is none of the 2 in"):
        build('TinyImageNet', tiny, split='val')
    shutil.rmtree(tiny / 'train')
    with pytest.raises(FileNotFoundError, match=r'TinyImageNet: there is no folder .*train. Get it with: wget -P .* && '
                                                r'unzip -q .*tiny-imagenet-200.zip -d'):
        build('TinyImageNet', tiny, split='val')
    assert not image.exists()


@pytest.mark.parametrize('tiny', ['archive'], indirect=True)
def test_tiny_imagenet_whose_validation_images_are_incomplete(tiny):
    (tiny / 'val/images/val_1.JPEG').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 images of .*val_annotations.txt do not exist, e.g. .*val_1.JPEG'):
        build('TinyImageNet', tiny, split='val')
    (tiny / 'val/val_annotations.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'has images, but there is no .*val_annotations.txt'):
        build('TinyImageNet', tiny, split='val')


def test_real_photographs_of_tiny_imagenet(root):
    data = root.parent / 'shared/data/tiny-imagenet-20'
    if not data.is_dir():
        pytest.skip(f'there is no {data}')
    train, val = (build('TinyImageNet', data, split=split) for split in ('train', 'val'))
    assert (len(train), len(val), len(train.CLASSES)) == (4000, 1000, 20)
    assert np.bincount(val.get_gt_labels()).tolist() == [50] * 20


@pytest.fixture
def caltech(tmp_path):
    for i, name in enumerate(('001.ak47', '002.american-flag', '257.clutter')):
        for j in range(1, 51):
            draw(tmp_path / f'256_ObjectCategories/{name}/{i + 1:03d}_{j:04d}.jpg')
    (tmp_path / '256_ObjectCategories/001.ak47/RENAME2').touch()  # as in the archive
    return tmp_path / '256_ObjectCategories'


def test_caltech256(caltech):
    train, test = (build('Caltech256', caltech, split=split) for split in ('train', 'test'))
    paths = [{info['img_path'] for info in (data.get_data_info(i) for i in range(len(data)))} for data in (train, test)]
    assert (len(train), len(test)) == (120, 30)
    assert not paths[0] & paths[1]
    assert len(paths[0] | paths[1]) == 150
    assert train.CLASSES == test.CLASSES == ('001.ak47', '002.american-flag', '257.clutter')
    again = build('Caltech256', caltech, split='test')
    assert {again.get_data_info(i)['img_path'] for i in range(30)} == paths[1]
    other = build('Caltech256', caltech, split='test', seed=1)
    assert {other.get_data_info(i)['img_path'] for i in range(30)} != paths[1]
    for data in (train, test):
        for i in range(len(data)):
            info = data.get_data_info(i)
            assert data.CLASSES[info['gt_label']] == info['img_path'].split('/')[-2]


def test_caltech256_errors(tmp_path):
    with pytest.raises(ValueError, match="Caltech256: no split 'val'; there are train, test"):
        build('Caltech256', tmp_path, split='val')
    with pytest.raises(FileNotFoundError, match=re.escape(f'there is no folder {tmp_path}/gone. Get it with: wget -P '
                                                          f'{tmp_path} https://data.caltech.edu')):
        build('Caltech256', tmp_path / 'gone')
