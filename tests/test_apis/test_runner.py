"""Training, resuming and testing through the command lines, on tiny models and data."""

import copy
import json
import re
import subprocess
import sys
from argparse import Namespace

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch.testing import assert_close

from rkan_mm.apis import runner
from rkan_mm.apis.testing_options import use_test_options
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.preflight import PreflightError

SHAPES = 'configs/mask-rcnn_rkanet18_fpn_shapes.py'
TINY = ['model.backbone.backbone.base_channels=4', 'model.backbone.backbone.stem_channels=4',
        'model.neck.in_channels=[4,8,16,32]', 'train_dataloader.batch_size=2', 'train_cfg.val_interval=1',
        'model.test_cfg.rcnn.score_thr=0.0',
        'default_hooks.checkpoint.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=-1']


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=4, num_val=2, size=64)


def command(root, shapes, work_dir, *options, flags=()):
    return [str(root / SHAPES), '--work-dir', str(work_dir), *flags,
            '--cfg-options', f'data_root={shapes}', *TINY, *options]


def test_train_resume_and_test_a_detector(root, shapes, tmp_path):
    through = runner.train(command(root, shapes, tmp_path / 'a', 'train_cfg.max_epochs=2'))
    assert through.epoch == 2
    metrics = through.val_loop.run()
    assert {f'coco/{kind}_{name}' for kind in ('bbox', 'segm')
            for name in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')} <= set(metrics)

    runner.train(command(root, shapes, tmp_path / 'b', 'train_cfg.max_epochs=1'))
    resumed = runner.train(command(root, shapes, tmp_path / 'b', 'train_cfg.max_epochs=2', flags=['--resume']))
    assert resumed.epoch == 2
    assert resumed.iter == through.iter
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        assert (tmp_path / 'b' / name).is_file()

    out = str(tmp_path / 'c' / 'out.pkl')
    argv = command(root, shapes, tmp_path / 'c', flags=['--out', out, '--show-dir', 'shown'])
    tested = runner.test([argv[0], str(tmp_path / 'a' / 'epoch_2.pth'), *argv[1:]])
    assert_close(tested, {key: value for key, value in metrics.items() if key in tested})
    assert (tmp_path / 'c' / 'out.pkl').stat().st_size > 0
    assert len(list((tmp_path / 'c').rglob('shown/*.png'))) == 2


def test_all_24_coco_figures_are_printed(root, shapes, tmp_path, capsys):
    runner.train(command(root, shapes, tmp_path, 'train_cfg.max_epochs=1'))
    printed = capsys.readouterr().out
    assert len(re.findall(r'Average (?:Precision|Recall) .* = -?\d\.\d+', printed)) == 24


CLASSIFIER = """
default_scope = 'mmpretrain'
data_root = 'data/pictures/'
custom_imports = dict(imports=['rkan_mm'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='RKANet', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=64, topk=(1,)))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=pipeline))
val_dataloader = copy.deepcopy(train_dataloader)
test_dataloader = copy.deepcopy(train_dataloader)
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
auto_scale_lr = dict(base_batch_size=4)
""".replace('copy.deepcopy(train_dataloader)', 'train_dataloader')


@pytest.fixture
def classifier(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'pictures/train' / name).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / f'pictures/train/{name}/{i}.png'), rng.integers(0, 255, (64, 64, 3), np.uint8))
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    return tmp_path / 'classifier.py'


def test_train_and_test_a_classifier(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ['--cfg-options', f'data_root={tmp_path / "pictures"}']
    trained = runner.train([str(classifier), '--auto-scale-lr', *data])
    assert trained.work_dir == str(tmp_path / 'work_dirs/classifier')
    assert trained.optim_wrapper.param_groups[0]['lr'] == pytest.approx(0.005)
    assert 'accuracy/top1' in runner.test([str(classifier), 'work_dirs/classifier/epoch_1.pth', *data])


def test_auto_scale_lr_without_a_base(classifier, tmp_path):
    text = classifier.read_text().replace('auto_scale_lr = dict(base_batch_size=4)', '')
    classifier.write_text(text)
    with pytest.raises(PreflightError, match='--auto-scale-lr: .*classifier.py does not say'):
        runner.train([str(classifier), '--auto-scale-lr'])


def test_no_validate(root, shapes, tmp_path):
    trained = runner.train(command(root, shapes, tmp_path, 'train_cfg.max_epochs=1', flags=['--no-validate']))
    assert trained.val_loop is None


def test_options_for_speed(classifier, tmp_path):
    trained = runner.train([str(classifier), '--work-dir', str(tmp_path / 'work'), '--no-validate', '--amp-dtype',
                            'bfloat16', '--channels-last', '--sync-bn', '--cfg-options',
                            f'data_root={tmp_path / "pictures"}'])
    assert type(trained.optim_wrapper).__name__ == (
        'AmpOptimWrapper' if torch.cuda.is_available() else 'AutocastOptimWrapper')
    assert trained.model.backbone.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with trained.optim_wrapper.optim_context(trained.model):
        assert trained.model.backbone(torch.rand(1, 3, 64, 64, device=get_device()))[-1].dtype == torch.bfloat16
    assert trained.message_hub.get_scalar('train/loss').current() < 5
    assert trained.cfg.sync_bn == 'torch'


def test_data_root_moves_every_path_below_it(root):
    cfg = runner.load_config(str(root / SHAPES), dict(data_root='/elsewhere/set'))
    assert cfg.train_dataloader.dataset.data_root == '/elsewhere/set'
    assert cfg.val_evaluator.ann_file == '/elsewhere/set/annotations/val.json'
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/train.json'
    coco = runner.load_config(str(root / 'configs/mask-rcnn_rkanet50_fpn_1x_coco.py'), dict(data_root='coco'))
    assert coco.test_evaluator.ann_file == 'coco/annotations/instances_val2017.json'
    untouched = runner.load_config(str(root / SHAPES))
    assert untouched.val_evaluator.ann_file == 'data/shapes/annotations/val.json'


@pytest.mark.parametrize(('path', 'moves'), [('data/other/', False), ('data/set', True), ('/else/set/train', True)])
def test_a_data_root_that_moves_nothing_is_told(tmp_path, capsys, path, moves):
    (tmp_path / 'own.py').write_text(f"""
data_root = 'data/set/'
unread = dict(data_root=data_root)
train_dataloader = dict(dataset=dict(type='MNIST', data_root={path!r}))
""")
    runner.load_config(str(tmp_path / 'own.py'), dict(data_root='/else/set/'))
    told = "data_root=/else/set/ has moved nothing: no path that the run reads begins with the 'data/set/' of the conf"
    assert (told in capsys.readouterr().out) != moves


def test_work_dir_is_named_after_the_config(root):
    assert runner.load_config(str(root / SHAPES)).work_dir == 'work_dirs/mask-rcnn_rkanet18_fpn_shapes'


@pytest.mark.parametrize(('tool', 'arguments', 'message'), [
    ('train', ['configs/none.py'], "train.py: Config 'configs/none.py' does not exist."),
    ('train', [SHAPES, '--cfg-options', 'data_root=gone'],
     "train.py: CocoDataset: data root 'gone' does not exist. Make it with: python tools/make_shapes.py data/shapes"),
    ('test', [SHAPES, 'gone/epoch_1.pth'],
     "test.py: Checkpoint 'gone/epoch_1.pth' does not exist; there is no .pth file in gone."),
])
def test_missing_things_are_one_sentence(root, tool, arguments, message):
    done = subprocess.run([sys.executable, f'tools/{tool}.py', *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == message
    assert 'Traceback' not in done.stderr


def test_corrupt_image_is_named(root, shapes, tmp_path):
    data = tmp_path / 'shapes'
    subprocess.run(['cp', '-r', shapes, data], check=True)
    (data / 'train/000002.png').write_bytes(b'no picture')
    with pytest.raises(Exception, match=r'000002\.png'):
        runner.train(command(root, data, tmp_path / 'work', 'train_cfg.max_epochs=1'))


def test_configs_of_other_packages_are_left_alone(root):
    cfg = Config(copy.deepcopy(runner.load_config(str(root / SHAPES)).to_dict()))
    assert 'collate_fn' not in cfg.train_dataloader
    assert torch.cuda.is_available() or cfg.env_cfg.dist_cfg.backend == 'gloo'


def test_ap_of_each_class(root, shapes, tmp_path):
    trained = runner.train(command(root, shapes, tmp_path, 'train_cfg.max_epochs=1', flags=['--no-validate']))
    checkpoint = f'{trained.work_dir}/epoch_1.pth'
    argv = command(root, shapes, tmp_path, flags=['--classwise'])
    metrics = runner.test([argv[0], checkpoint, *argv[1:]])
    assert {f'coco/{name}_precision' for name in ('disc', 'rectangle', 'triangle', 'star', 'ring')} <= set(metrics)


def test_classwise_without_coco(classifier, tmp_path):
    (tmp_path / 'any.pth').touch()
    with pytest.raises(PreflightError, match='--classwise: no test evaluator .* has an argument .* there is Accuracy'):
        runner.test([str(classifier), str(tmp_path / 'any.pth'), '--classwise'])


@pytest.mark.parametrize('name', ['CocoMetric', 'LVISMetric', 'CocoPanopticMetric', 'rkan_mm.FasterCocoMetric'])
def test_metrics_that_tell_of_each_class(name):
    cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset={}), test_cfg={},
                      test_evaluator=[dict(type='VOCMetric'), dict(type=name)]))
    use_test_options(cfg, Namespace(out=None, out_item=None, show=False, show_dir=None, classwise=True, tta=False,
                                    amp=False))
    assert [each.get('classwise') for each in cfg.test_evaluator] == [None, True]


def test_metrics_that_are_no_numbers(classifier, tmp_path):
    """A test behind a training would end with an error in its last line, when all is done."""
    lines = "test_evaluator = [dict(type='Accuracy', topk=(1,)), dict(type='ConfusionMatrix', num_classes=2)]\n"
    classifier.write_text(classifier.read_text() + lines)
    work, data = tmp_path / 'work', ['--cfg-options', f'data_root={tmp_path / "pictures"}']
    runner.train([str(classifier), '--test', '--work-dir', str(work), *data])
    counts = json.loads((work / 'summary.json').read_text())['test']['confusion_matrix/result']
    assert sum(map(sum, counts)) == 4
    for name in ('metrics.json', 'metrics.yaml', 'metrics.pkl'):
        runner.test([str(classifier), str(work / 'epoch_1.pth'), '--work-dir', str(work), '--out', str(tmp_path / name),
                     '--out-item', 'metrics', *data])
        found = mmengine.load(str(tmp_path / name))['confusion_matrix/result']
        assert [list(map(int, row)) for row in found] == counts


@pytest.mark.parametrize(('root', 'moved'), [
    ('s3://bucket/coco', 's3://bucket/coco/train.json'), ('s3://bucket/coco/', 's3://bucket/coco/train.json'),
    ('/my data/coco/', '/my data/coco/train.json')])
def test_data_roots_of_all_kinds(tmp_path, root, moved):
    (tmp_path / 'own.py').write_text(
        "data_root = 'data/coco/'\ntrain_dataloader = dict(dataset=dict(ann_file=data_root + 'train.json'))")
    cfg = runner.load_config(str(tmp_path / 'own.py'), dict(data_root=root))
    assert cfg.train_dataloader.dataset.ann_file == moved


def test_parts_of_a_config_that_are_none(classifier, tmp_path):
    classifier.write_text(classifier.read_text() + 'env_cfg = dict(dist_cfg=None)\nauto_scale_lr = None\n')
    data = ['--work-dir', str(tmp_path / 'work'), '--cfg-options', f'data_root={tmp_path / "pictures"}']
    assert runner.train([str(classifier), *data]).epoch == 1
    with pytest.raises(PreflightError, match='does not say for which auto_scale_lr.base_batch_size'):
        runner.train([str(classifier), '--auto-scale-lr', *data])


def test_a_flexible_runner_without_an_environment(classifier, tmp_path):
    classifier.write_text(classifier.read_text() + "runner_type = 'FlexibleRunner'\n")
    data = ['--work-dir', str(tmp_path / 'work'), '--cfg-options', f'data_root={tmp_path / "pictures"}']
    assert type(runner.train([str(classifier), *data])).__name__ == 'FlexibleRunner'
