"""Bad classification data and checkpoints: each is one sentence that names what, where and how to mend it."""

import hashlib
import pickle
import re
import urllib.error
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
from config_files import PATHS
from mmengine.registry import DATASETS, init_default_scope
from small_runs import CLASSIFIER

from rkan_mm.apis import runner
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.absent import tell_absent_labels
from rkan_mm.preflight.classification import (
    check_classification,
    check_labels,
    check_names_of_folders,
    check_same_folders,
)

TINY_IMAGENET = 'configs/tiny-imagenet/rkan-resnet34_1xb128-200e_tiny-imagenet.py'
SMALL = ['model.backbone.backbone.base_channels=8', 'model.backbone.backbone.stem_channels=8',
         'model.head.in_channels=64', 'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
         'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0', 'train_cfg.max_epochs=1']


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError('no network')

    monkeypatch.setattr('urllib.request.urlopen', refuse)


@pytest.fixture
def tiny(tmp_path):
    """Three of Tiny ImageNet's classes in the layout of its archive."""
    root, rng, table = tmp_path / 'tiny-imagenet-200', np.random.default_rng(0), ''
    (root / 'val/images').mkdir(parents=True)
    for name in ('n01443537', 'n01629819', 'n04008634'):
        (root / f'train/{name}/images').mkdir(parents=True)
        for j in range(2):
            cv2.imwrite(str(root / f'train/{name}/images/{j}.JPEG'), rng.integers(0, 255, (64, 64, 3), np.uint8))
        cv2.imwrite(str(root / f'val/images/{name}.JPEG'), rng.integers(0, 255, (64, 64, 3), np.uint8))
        table += f'{name}.JPEG\t{name}\t0\t0\t1\t1\n'
    (root / 'val/val_annotations.txt').write_text(table)
    return root


def command(root, data, work_dir, *options):
    return [str(root / TINY_IMAGENET), '--work-dir', str(work_dir), '--cfg-options', f'data_root={data}', *SMALL,
            *options]


def test_a_published_config_trains_and_tests(root, tiny, tmp_path, capsys):
    trained = runner.train(command(root, tiny, tmp_path / 'work'))
    assert trained.epoch == 1
    assert re.search(r'top1: last \d+\.\d{4}, best \d+\.\d{4} \(validation 1 of 1\)', capsys.readouterr().out)
    argv = command(root, tiny, tmp_path / 'work')
    assert 'accuracy/top5' in runner.test([argv[0], str(tmp_path / 'work/epoch_1.pth'), *argv[1:]])

    with pytest.raises(PreflightError, match=r"epoch_1.pth': 2 do not fit \(head.fc.weight \(200, 64\), "
                                             r'here \(100, 64\), head.fc.bias'):
        runner.test([argv[0], str(tmp_path / 'work/epoch_1.pth'), *argv[1:], 'model.head.num_classes=100'])


def test_a_label_beyond_the_classes_of_the_head(root, tiny, tmp_path):
    with pytest.raises(PreflightError, match=r'TinyImageNet: .*n04008634/images/0.JPEG has the label 2, but the head '
                                             r'of the model has num_classes=2 \(0 to 1\); 2 of 6 images are so'):
        runner.train(command(root, tiny, tmp_path, 'model.head.num_classes=2', 'model.head.topk=(1,)',
                             'data_preprocessor.num_classes=2'))


def test_a_corrupt_image_is_named(root, tiny, tmp_path):
    (tiny / 'train/n01629819/images/1.JPEG').write_bytes(b'no picture')
    with pytest.raises(Exception, match=r'n01629819/images/1\.JPEG'):
        runner.train(command(root, tiny, tmp_path))


def test_a_class_folder_without_images(tmp_path, capsys):
    init_default_scope('mmpretrain')
    for name in ('cat', 'dog', 'owl'):
        (tmp_path / name).mkdir()
    for name in ('cat', 'owl'):
        cv2.imwrite(str(tmp_path / name / '1.png'), np.zeros((8, 8, 3), np.uint8))
    data = DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path)))
    check_labels(data, 3)  # mmpretrain runs, and the others are numbered right
    tell_absent_labels(data, 3, 'train')
    assert capsys.readouterr().out == (
        'WARNING: CustomDataset of the train has no images of 1 of 3 classes (dog), which cannot be learned.\n')
    cv2.imwrite(str(tmp_path / 'dog/1.png'), np.zeros((8, 8, 3), np.uint8))
    data = DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path)))
    check_labels(data, 3)
    tell_absent_labels(data, 3, 'train')
    assert not capsys.readouterr().out
    (tmp_path / 'dog/2.webp').write_bytes(b'RIFF')
    (tmp_path / 'dog/notes.txt').touch()
    check_labels(DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path))), 3)
    assert 'CustomDataset reads no .webp: 1 of the pictures in' in capsys.readouterr().out
    wrapped = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=dict(
        type='CustomDataset', data_root=str(tmp_path))))
    with pytest.raises(PreflightError, match=r'owl/1.png has the label 2'):
        check_labels(wrapped, 2)
    check_labels([1, 2, 3], 2)  # not one of mm's


@pytest.mark.parametrize(('lines', 'message'), [
    ('cat/0.png 0\ndog/0.png 1\nowl/0.png 2\n', None),
    ('cat/0.png 1\ndog/0.png 0\nowl/0.png 2\n', 'The pictures of cat have the label 0 in the data of the train, and 1 '
                                                'in those of the validation; 2 folders are so.'),
    ('cat/0.png 1\ncat/1.png 0\nowl/0.png 2\n', None),
])
def test_a_list_that_numbers_folders_otherwise(small_data, tmp_path, capsys, lines, message):
    (tmp_path / 'val.txt').write_text(lines)
    (tmp_path / 'cls.py').write_text(CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures'))))
    argv = [str(tmp_path / 'cls.py'), '--work-dir', str(tmp_path / 'work'), '--cfg-options',
            f'val_dataloader.dataset.ann_file={tmp_path / "val.txt"}']
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        runner.train(argv)
    capsys.readouterr()
    if message:  # several folders of one label may be those of clips
        (tmp_path / 'train.txt').write_text('cat/0.png 0\ndog/0.png 0\nowl/0.png 2\nowl/1.png 2\n')
        runner.train([*argv, f'train_dataloader.dataset.ann_file={tmp_path / "train.txt"}'])
        assert ('WARNING: The pictures of cat have the label 0 in the data of the train, and 1 in those of the valid'
                in capsys.readouterr().out)


NAMED = {
    'another order': (dict(classes=('owl', 'Cat', 'dog')), 'The pictures of cat have the label 0 in CustomDataset of '
                      "the test, which classes name 'owl'; 3 folders are so. .*: write them as cat, dog, owl, or"),
    'a list': (dict(ann_file='list.txt', classes=('cat', 'owl', 'dog')),
               "The pictures of dog have the label 1 in .* name 'owl'; 2 folders are so."),
    'their order': (dict(classes=('Cat', 'dog', 'owl')), None),
    'a list in their order': (dict(ann_file='list.txt', classes=('cat', 'dog', 'owl')), None),
    'other names': (dict(classes=('Kater', 'dog', 'Eule')), None),
    'names that differ in case alone': (dict(classes=('cat', 'CAT', 'owl')), None),
}


@pytest.mark.parametrize('case', NAMED)
def test_folders_that_classes_name_otherwise(small_data, tmp_path, case):
    """Folders are numbered by the alphabet: by classes in another order each prediction would have a wrong name."""
    (tmp_path / 'list.txt').write_text('cat/0.png 0\ndog/0.png 1\nowl/0.png 2\n')
    given, message = NAMED[case]
    init_default_scope('mmpretrain')
    data = DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path),
                               data_prefix=str(small_data / 'pictures/train'), **given))
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        check_names_of_folders(data, 'test')


def test_folders_within_those_of_classes(tmp_path):
    """Clips of a class are numbered as they like, and may be called as another class is."""
    init_default_scope('mmpretrain')
    for name in ('train/cat/1', 'train/cat/2', 'train/dog/3', 'train/dog/4/cat', 'val/cat/3', 'val/dog/1', 'val/dog/2'):
        (tmp_path / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name / '1.png'), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / 'val.txt').write_text('val/cat/3/1.png 1\nval/dog/1/1.png 0\n')
    given = dict(type='CustomDataset', classes=('cat', 'dog'), data_root=str(tmp_path))
    train, val, odd = (DATASETS.build({**given, **each}) for each in (
        dict(data_prefix='train'), dict(data_prefix='val'), dict(ann_file='val.txt')))
    check_same_folders(dict(train=train, validation=val))
    check_names_of_folders(train, 'train')
    with pytest.raises(PreflightError, match='The pictures of cat have the label 0 .* and 1 in .*; 2 folders are so'):
        check_same_folders(dict(train=train, validation=odd))
    with pytest.raises(PreflightError, match="The pictures of cat have the label 1 .* name 'dog'"):
        check_names_of_folders(odd, 'validation')


def test_no_training_with_folders_that_classes_name_otherwise(printed):
    with pytest.raises(PreflightError, match='The pictures of cat .* of the train, which classes name .dog.; 2 folders'
                                             '.* To run all the same: --cfg-options preflight.classes=False'):
        printed(CLASSIFIER, "train_dataloader['dataset'].update(classes=('dog', 'cat', 'owl'))\n"
                            "val_dataloader['dataset'].update(classes=('dog', 'cat', 'owl'))\n")


def test_folders_for_a_type_with_names_of_its_own(printed):
    with pytest.raises(PreflightError, match=r'of subfolders \(3\) .* \(1000\).*as ImageNet has 1000, give your'):
        printed(CLASSIFIER, "train_dataloader['dataset'].update(type='ImageNet')\n")


@pytest.mark.parametrize(('config', 'message'), [
    ('rkan-resnet50_1xb128-200e_food101', "Food101: data root 'gone' does not exist. Get it with: wget -P data http://"
     'data.vision.ee.ethz.ch/cvl/food-101.tar.gz && tar -C data -xf data/food-101.tar.gz'),
    ('rkan-resnet50_1xb128-200e_tiny-imagenet', "TinyImageNet: data root 'gone' does not exist. Get it with: wget -P "
     'data http://cs231n.stanford.edu/tiny-imagenet-200.zip && unzip -q data/tiny-imagenet-200.zip -d data'),
])
def test_wrong_data_root_of_folders(root, config, message):
    with pytest.raises(PreflightError, match=re.escape(message)):
        runner.train([str(PATHS[config]), '--cfg-options', 'data_root=gone'])


@pytest.mark.parametrize(('config', 'missing'), [
    ('rkan-resnet50_1xb128-200e_food101', 'images'), ('rkan-resnet50_1xb128-200e_tiny-imagenet', 'train')])
def test_a_data_root_with_other_things_in_it(root, tmp_path, config, missing):
    cfg = runner.load_config(str(PATHS[config]), dict(data_root=str(tmp_path)))
    with pytest.raises(PreflightError, match=f"'{tmp_path}/{missing}' does not exist. Get it with: wget"):
        check_classification(cfg, training=True)


@pytest.mark.parametrize('data', ['cifar10', 'cifar100', 'svhn'])
def test_downloads_without_a_network(root, tmp_path, offline, data):
    cfg = runner.load_config(str(PATHS[f'resnet50_1xb128-200e_{data}']), dict(data_root=str(tmp_path)))
    with pytest.raises(PreflightError, match=rf"{data.upper()}: it is not in '{tmp_path}' and cannot be downloaded \("
                                             rf'no network\). Get it with: wget -P data/{data} http'):
        check_classification(cfg, training=True)


def test_a_torn_archive(root, tmp_path, offline):
    cfg = runner.load_config(str(PATHS['resnet50_1xb128-200e_cifar100']), dict(data_root=str(tmp_path)))
    (tmp_path / 'cifar-100-python.tar.gz').write_bytes(b'torn')
    with pytest.raises(PreflightError, match=r"CIFAR100: '.*cifar-100-python.tar.gz' is torn or another file, of md5 "
                                             r'\w+ and not eb9058c3a382ffc7106e4002c42a8d85. Delete it. Get it with'):
        check_classification(cfg, training=True)


def test_files_that_are_unpacked_and_torn(printed, tmp_path, offline):
    (tmp_path / 'cifar-10-batches-py').mkdir()
    for name in ('test_batch', *(f'data_batch_{i}' for i in range(1, 6))):
        (tmp_path / 'cifar-10-batches-py' / name).write_bytes(b'torn')
    with pytest.raises(PreflightError, match=r'are missing or torn, by their md5, .* set download=False\)\. The tr'):
        printed(CLASSIFIER, "model['head']['num_classes'] = 10\ntrain_dataloader['dataset'] = dict(type='CIFAR10', "
                            f"data_root='{tmp_path}', split='train', pipeline=[dict(type='PackInputs')])\n")


def test_what_is_unpacked_needs_no_network(root, tmp_path, offline, monkeypatch):
    from mmpretrain.datasets import CIFAR100
    folder, md5 = tmp_path / 'cifar-100-python', {}
    folder.mkdir()
    for name in ('train', 'test'):
        content = dict(data=np.zeros((2, 3072), np.uint8), fine_labels=[3, 99])
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    cfg = runner.load_config(str(PATHS['resnet50_1xb128-200e_cifar100']), dict(data_root=str(tmp_path)))
    check_classification(cfg, training=True)
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', md5['train']]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', md5['test']]])
    init_default_scope('mmpretrain')
    sample = DATASETS.build(cfg.train_dataloader.dataset)[1]
    assert (sample['inputs'].shape, sample['data_samples'].gt_label.tolist()) == ((3, 128, 128), [99])


AUGMENTED = "model.update(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))\n"


@pytest.mark.parametrize(('lines', 'message'), [
    ("train_dataloader['dataset']['data_prefix'] = dict(img='train')\n", "KeyError: img_path.*data_prefix='...', or "),
    ("train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[train_dataloader['dataset'], dict(\n"
     "    val_dataloader['dataset'], classes=('a', 'b', 'c'))])\n", 'name the same classes: write them in each'),
    (AUGMENTED + "model['data_preprocessor'] = dict(num_classes=1000)\n",
     'length of score 3 .*data_preprocessor.num_classes is that of the head: set both alike'),
    ("model['head'].update(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=1000))\n",
     'model.head.loss has a num_classes of its own'),
    ("model['head'].update(topk=(1, 5), cal_acc=True)\n", 'topk of the head is more than there are classes'),
    ("model['head'].update(loss=dict(type='CrossEntropyLoss', class_weight=[1., 2.]))\n", 'a number for each class'),
    ("model['head'] = dict(type='CSRAClsHead', num_classes=3, in_channels=32, num_heads=1, lam=0.1)\n",
     'goes without GlobalAveragePooling: leave the neck out'),
    ("model['head'] = None\n", 'the model has no head'),
])
def test_numbers_of_classes_in_several_places(printed, lines, message):
    with pytest.raises(PreflightError, match=message):
        printed(CLASSIFIER, lines)
