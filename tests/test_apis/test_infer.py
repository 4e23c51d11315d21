"""Pictures and json from the command line, for detectors and classifiers."""

import json
import pickle
import re
import shutil
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as rle

from rkan_mm.apis import infer, runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.preflight import PreflightError

TINY = {'model.backbone.backbone.base_channels': 4, 'model.backbone.backbone.stem_channels': 4,
        'model.neck.in_channels': [4, 8, 16, 32], 'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5}
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64))
test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
"""


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 1, 3, size=64) / 'val'


def saved(config, tmp_path, options, classes) -> list[str]:
    """Config and checkpoint of a random model."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MMENGINE_MODELS.build(cfg.model)
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), path)
    return [str(config), str(path)]


def test_a_detector(root, images, tmp_path, capsys):
    arguments = saved(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py', tmp_path, TINY, tuple('abcde'))
    options = ['--cfg-options', *(f'{key}={value}'.replace(' ', '') for key, value in TINY.items())]
    infer.main([*arguments, str(images), '--out-dir', str(tmp_path / 'out'), '--score-thr', '0', *options])
    assert '3 images: pictures in ' in capsys.readouterr().out
    names = {path.stem for path in images.glob('*.png')}
    assert len(names) == 3
    for name in names:
        found = json.loads((tmp_path / f'out/preds/{name}.json').read_text())
        assert len(found['bboxes']) == len(found['scores']) == len(found['labels']) == len(found['masks']) == 5
        assert rle.decode(found['masks'][0]).shape == (64, 64)
        drawn = cv2.imread(str(tmp_path / f'out/vis/{name}.png'))
        assert drawn is not None
        assert (drawn != cv2.imread(str(images / f'{name}.png'))).any()


def test_a_classifier(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    arguments = saved(tmp_path / 'classifier.py', tmp_path, {}, ('cat', 'dog', 'ship'))
    one, *_ = sorted(images.glob('*.png'))
    infer.main([*arguments, str(one)])
    out = tmp_path / 'work_dirs/classifier/infer'
    found = json.loads((out / f'preds/{one.stem}.json').read_text())
    assert sum(found['pred_scores']) == pytest.approx(1, abs=1e-5)
    assert found['pred_class'] == ('cat', 'dog', 'ship')[found['pred_label']]
    assert (out / f'vis/{one.stem}.png').is_file()


@pytest.mark.parametrize('step', ["'LoadImageFromFile', color_type='color_ignore_orientation'",
                                  "'mmcv.LoadImageFromFile', color_type='grayscale'"])
def test_a_classifier_sees_pictures_as_in_its_test(images, tmp_path, step):
    """The inferencer of mmpretrain loads them in its own way, whatever the pipeline says."""
    one, *_ = sorted(images.glob('*.png'))
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    (tmp_path / 'val/cat').mkdir(parents=True)
    Image.open(one).save(tmp_path / 'val/cat/a.jpg', exif=exif)
    text = CLASSIFIER.replace("dataset=dict(", "sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1, "
                              "num_workers=0, dataset=dict(type='CustomDataset', with_label=False, data_prefix="
                              f"{str(tmp_path / 'val')!r}, ").replace("'LoadImageFromFile'", step)
    if 'grayscale' in step:
        text = text.replace('base_channels=8', 'in_channels=1, base_channels=8')
    dump = f"test_evaluator = dict(type='DumpResults', out_file_path={str(tmp_path / 'out.pkl')!r})\n"
    (tmp_path / 'cls.py').write_text(f'{text}{dump}test_cfg = dict()\n')
    arguments = saved(tmp_path / 'cls.py', tmp_path, {}, ('a', 'b', 'c'))
    runner.test([*arguments, '--work-dir', str(tmp_path / 'work')])
    expected = pickle.loads((tmp_path / 'out.pkl').read_bytes())[0]['pred_score']
    infer.main([*arguments, str(tmp_path / 'val/cat'), '--out-dir', str(tmp_path / 'out')])
    found = json.loads((tmp_path / 'out/preds/a.json').read_text())['pred_scores']
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_classifier_of_data_in_memory(tmp_path):
    """Whose arrays are RGB, as those of CIFAR-10."""
    Image.new('RGB', (8, 8), (250, 100, 10)).save(tmp_path / 'a.png')
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[dict(type='PackInputs')]))))
    sample = infer._cls_inferencer()._init_pipeline(None, cfg)(dict(img_path=str(tmp_path / 'a.png')))
    assert sample['inputs'][:, 0, 0].tolist() == [250, 100, 10]


def test_a_classifier_of_several_labels(images, tmp_path):
    (tmp_path / 'cls.py').write_text(CLASSIFIER.replace('LinearClsHead', 'MultiLabelLinearClsHead').replace(
        'num_classes=3', 'num_classes=3, thr=0.0'))
    arguments = saved(tmp_path / 'cls.py', tmp_path, {}, ('a', 'b', 'c'))
    infer.main([*arguments, str(images), '--out-dir', str(tmp_path / 'out')])
    found = json.loads((tmp_path / 'out/preds/000000.json').read_text())
    assert found['pred_class'] == ['a', 'b', 'c']
    assert found['pred_score'] == found['pred_scores']


@pytest.mark.parametrize('batch_size', ['1', '2'])
def test_names_with_dots(images, tmp_path, batch_size):
    """A classifier's pictures and json are of each image, however many at a time."""
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    arguments = saved(tmp_path / 'classifier.py', tmp_path, {}, ('cat', 'dog', 'ship'))
    names = ['cat.0', 'cat.1', 'dog.0']
    (tmp_path / 'pictures').mkdir()
    for image, name in zip(sorted(images.glob('*.png')), names, strict=True):
        shutil.copy(image, tmp_path / f'pictures/{name}.png')
    infer.main([*arguments, str(tmp_path / 'pictures'), '--out-dir', str(tmp_path / 'out'), '--batch-size', batch_size])
    assert sorted(path.stem for path in (tmp_path / 'out/vis').glob('*.png')) == names
    assert sorted(path.stem for path in (tmp_path / 'out/preds').glob('*.json')) == names


def test_images_that_are_not_there(images, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'torn.png').write_bytes(b'no picture')
    one, *_ = sorted(images.glob('*.png'))
    shutil.copy(one, tmp_path / one.name)
    for inputs, message in (([tmp_path / 'gone.png'], r"Image '.*gone.png' does not exist."),
                            ([tmp_path / 'empty'], r"Folder '.*empty' has no image \(.jpg, "),
                            ([tmp_path / 'torn.png'], r"Image '.*torn.png' cannot be read as one."),
                            ([one, tmp_path / one.name], rf"and '.*{one.name}' have one name")):
        with pytest.raises(PreflightError, match=message):
            infer.list_images([str(name) for name in inputs], named=True)
    assert infer.list_images([str(images)]) == sorted(map(str, images.glob('*.png')))


def test_a_checkpoint_that_is_not_there(root, images):
    with pytest.raises(PreflightError, match="Checkpoint 'gone.pth' does not exist"):
        infer.main([str(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'), 'gone.pth', str(images)])


@pytest.mark.parametrize('highest', [149, 255, 846])  # ADE20K has 150 classes, and in full 847
def test_labels_of_many_classes(tmp_path, highest):
    label = np.arange(highest + 1).reshape(1, -1)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((1, highest + 1, 3), np.uint8))
    infer._segment(lambda batch, **options: dict(visualization=cv2.imread(batch[0]), predictions=label),
                   [str(tmp_path / 'a.png')], tmp_path)
    assert (cv2.imread(str(tmp_path / 'preds/a.png'), cv2.IMREAD_UNCHANGED) == label).all()

def test_pictures_of_several_sizes_make_no_batch(images, tmp_path, capsys):
    """They are predicted one by one."""
    (tmp_path / 'cls.py').write_text(CLASSIFIER)
    arguments = saved(tmp_path / 'cls.py', tmp_path, {}, ('a', 'b', 'c'))
    folder = tmp_path / 'some'
    shutil.copytree(images, folder)
    cv2.imwrite(str(folder / 'wide.png'), np.zeros((40, 90, 3), np.uint8))
    infer.main([*arguments, str(folder), '--out-dir', str(tmp_path / 'out'), '--batch-size', '3'])
    assert '4 images: pictures in' in capsys.readouterr().out
    assert len(list((tmp_path / 'out/preds').iterdir())) == 4


def test_pictures_that_a_model_cannot_take(images, tmp_path, capsys, monkeypatch):
    """They are named, and the others are predicted; where none can be, that is the error."""
    classify = infer._classify

    def picky(inferencer, batch, out_dir):
        if any(len(cv2.imread(path)) < 16 for path in batch):
            raise RuntimeError("Kernel size can't be greater than actual input size")
        return classify(inferencer, batch, out_dir)

    monkeypatch.setattr(infer, '_classify', picky)
    (tmp_path / 'cls.py').write_text(CLASSIFIER)
    arguments = saved(tmp_path / 'cls.py', tmp_path, {}, ('a', 'b', 'c'))
    folder = tmp_path / 'some'
    shutil.copytree(images, folder)
    for name in ('aa', 'zz'):
        cv2.imwrite(str(folder / f'{name}.png'), np.zeros((8, 8, 3), np.uint8))
    for number in (1, 4):
        with pytest.raises(SystemExit) as end:
            infer.main([*arguments, str(folder), '--out-dir', str(tmp_path / 'out'), '--batch-size', str(number)])
        assert end.value.code == 1
        shown = capsys.readouterr()
        assert '3 images: pictures in' in shown.out
        assert re.search('2 cannot be predicted by this model and are left out: .*aa.png, .*zz.png '
                         "\\(the first: Kernel size can't be greater", shown.err)
    with pytest.raises(PreflightError, match="Image '.*aa.png' cannot be predicted: RuntimeError: Kernel size"):
        infer.main([*arguments, str(folder / 'aa.png'), '--out-dir', str(tmp_path / 'out')])


@pytest.mark.parametrize('error', [
    OSError(28, 'No space left on device'), RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')])
def test_a_full_disk_or_card_is_no_matter_of_the_pictures(images, tmp_path, monkeypatch, error):
    (tmp_path / 'cls.py').write_text(CLASSIFIER)
    arguments = saved(tmp_path / 'cls.py', tmp_path, {}, ('a', 'b', 'c'))

    def full(*args):
        raise error
    monkeypatch.setattr(infer.mmengine, 'dump', full)
    with pytest.raises(PreflightError, match=f'The images cannot be predicted: .*{error.args[-1][:12]}'):
        infer.main([*arguments, str(images), '--out-dir', str(tmp_path / 'out')])


@pytest.mark.parametrize(('model', 'name'), [
    (dict(type='ImageClassifier', head=dict(type='MultiTaskHead', in_channels=32, task_heads=dict(
        a=dict(type='LinearClsHead', num_classes=2)))), 'MultiTaskHead'),
    (dict(type='ImageClassifier', head=dict(type='LinearClsHead', in_channels=32, num_classes=2)), None),
    (dict(type='SimCLR', head=dict(type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'))), 'SimCLR'),
])
def test_models_that_answer_by_no_scores_of_classes(model, name):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = MMENGINE_MODELS.build(dict(model, backbone=dict(type='ResNet', depth=18, base_channels=4)))
    with pytest.raises(PreflightError, match=f'the model is {name}: see .* tools/test.py') if name else nullcontext():
        infer._refuse_others(built)
