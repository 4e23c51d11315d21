"""Mistakes of a tired user: each ends in one sentence with cause and cure and exit code 2, from every tool."""

import re
import shlex
import shutil
from collections import OrderedDict

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from small_runs import CLASSIFIER, DETECTOR

from rkan_mm import cli
from rkan_mm.datasets.shapes import make_shapes

RKANET = "type='rkan_mm.RKANet',"
CONFIGS = {  # of one text in the detector's config, what stands there by mistake
    'model': ("type='RetinaNet'", "type='RetinNet'"),
    'unclosed': ("model = dict(", 'model = dict(('),
    'unnamed': ("randomness = dict(seed=0)", 'randomness = dict(seed=seeds)'),
    'import': ("imports=['rkan_mm']", "imports=['rkan_mn']"),
    'wrapper': ('optim_wrapper', 'optim_wraper'),
    'stage': (RKANET, f"{RKANET} stages=('layer5',),"),
    'basis': (RKANET, f"{RKANET} basis='bspline',"),
    'neck': ('in_channels=[4, 8, 16, 32]', 'in_channels=[4, 8, 16, 64]'),
    'transform': ("type='LoadAnnotations'", "type='LoadAnotations'"),
    'text': ('lr=0.001', "lr='0.001'"),
    'metric': ("val_evaluator = dict(type='CocoMetric'", "val_evaluator = dict(type='CocoMetrics'"),
    'hook': ("type='IterTimerHook'", "type='EMAHok'"),
    'schedule': ('randomness', "param_scheduler = [dict(type='MultiStepLR', milestone=[8])]\nrandomness"),
    'optimizer': ("type='SGD'", "type='Sgd'"),
    'classes': ('val_evaluator =', "val_dataloader['dataset']['metainfo'] = dict(classes=('car',))\nval_evaluator ="),
}
DET, CLS = 'det.py det.pth', 'cls.py cls.pth'
MISTAKES = {
    'train gone.py': "Config 'gone.py' does not exist",
    'train model.py': 'RetinNet is not in the mmdet::model registry .did you mean RetinaNet',
    'train unclosed.py': "Config 'unclosed.py' cannot be read: .*line ",
    'train unnamed.py': "cannot be read: NameError: name 'seeds' is not defined",
    'train import.py': 'Failed to import custom modules from .*rkan_mn',
    'train wrapper.py': 'has no optim_wrapper to train by; it has optim_wraper, is optim_wrapper meant',
    'train nodelete.py': "RKANet has no argument depth, .* write _delete_=True beside type='rkan_mm.RKANet'",
    'train stage.py': "no stage 'layer5' in ResNet; it has conv1, .*, layer4",
    'train basis.py': 'RKANet has no argument basis; it has backbone, stages, block',
    'train neck.py': 'to have 64 channels, but got 32 .*in_channels of the neck or head are not those that the part',
    'train transform.py': 'LoadAnotations is not in .*did you mean LoadAnnotations',
    'train text.py': "a text stands where a number belongs, such as lr='0.001' for lr=0.001",
    'train metric.py': 'CocoMetrics is not in .*did you mean CocoMetric',
    'train hook.py': 'EMAHok is not in .*did you mean EMAHook',
    'train schedule.py': "unexpected keyword argument 'milestone'",
    'train optimizer.py': 'is optim_wrapper.optimizer.type as torch spells it',
    'train classes.py': "has no category car, which metainfo.classes of the config name; it has disc, ",
    'train notes.txt': 'Only py/yml/yaml/json type are supported',
    'train det.py --cfg-options train_cfg.max_epochs = 3': '--cfg-options takes KEY=VALUE, without spaces around "="',
    'train det.py --cfg-options optimizer.lr=0.1': 'did you mean optim_wrapper.optimizer.lr',
    'train det.py --cfg-options train_dataloader.batch_size=0': 'batch_size should be a positive integer value',
    'train det.py --cfg-options train_cfg.max_epochs=two': "invalid literal for int.*'two' .a text stands where",
    'train det.py --cfg-options data_root=gone': "CocoDataset: data root 'gone' does not exist",
    'train det.py --cfg-options load_from=notes.pth': "'notes.pth' is no checkpoint: torch has not saved this file",
    'train det.py --cfg-options model.bbox_head.num_classes=80': 'num_classes=80; .* has 5 .*Set model.bbox_head',
    'train det.py --resume gone.pth': "Checkpoint 'gone.pth' does not exist; . has cls.pth, det.pth, notes.pth",
    'train det.py --resume det.pth': 'holds weights alone, no state of a training .* --cfg-options load_from=det.pth',
    'train det.py --work-dir notes.txt': "The work dir 'notes.txt' cannot be written to .*choose another by --work-dir",
    'train det.py --auto-scale-lr': 'does not say for which auto_scale_lr.base_batch_size',
    'train det.py --lr 0.1': 'unrecognized arguments: --lr 0.1; for --lr: --cfg-options optim_wrapper.optimizer.lr',
    'train det.py --seed 1 --gpu-ids 0': 'for --seed: --cfg-options randomness.seed=N; for --gpu-ids: CUDA_VISIBLE_DEV',
    'train': 'the following arguments are required: config',
    'test det.py': 'the following arguments are required: checkpoint',
    'test det.pth det.py': 'Only py/yml/yaml/json type are supported',
    'test det.py cls.pth': 'entries of the model are not in it .*give the config that it was trained with, or --allow',
    'test cls.py det.pth': "'det.pth' fits nothing of the model",
    f'test {DET} --out res.json': "'res.json' must end in .pkl or .pickle, .* by --out-item metrics",
    f'test {DET} --eval bbox': 'for --eval: the metrics are those of test_evaluator, e.g. --cfg-options',
    f'test {DET} --cfg-options test_evaluator.metric=mAP': "metric should be one of 'bbox', 'segm', 'proposal'",
    f'test {DET} --cfg-options test_evaluator.metric=segm': 'the model predicts no masks: leave segm out of metric',
    f'test {CLS} --classwise': 'there is no CocoMetric among the test evaluators of the config; it has Accuracy',
    f'infer {DET} gone.jpg': "Image 'gone.jpg' does not exist",
    f'infer {DET} shapes/annotations': "Folder 'shapes/annotations' has no image",
    'infer det.py cls.pth shapes/val': 'entries of the model are not in it',
    f'infer {DET} shapes/val --device gpu': 'devices are called cpu, cuda or cuda:0',
    f'infer {DET} shapes/val --batch-size 0': 'argument --batch-size: 0 is not at least 1',
    f'infer {DET} shapes/val --out-dir notes.txt': "--out-dir 'notes.txt' cannot be made .*choose another",
    'convert torchvison det.pth out.pth': "invalid choice: 'torchvison'",
    'convert torchvision det.pth out.pth --config det.py': 'none of the source keys is one of the model',
    'convert torchvision det.pth out.pth': '--config is missing',
    'table gone.yml': "Table 'gone.yml' does not exist",
    f'inspect {CLS}': 'ImageClassifier has no KAN layer',
    'memory gone.py': "Config 'gone.py' does not exist",
    'subset-coco gone.json out.json': 'gone.json',
    'trian det.py': "no command 'trian'; did you mean 'train'",
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What a user may have in a folder."""
    path = tmp_path_factory.mktemp('user')
    make_shapes(path / 'shapes', num_train=2, num_val=2, size=64)
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog', 'owl'):
        for split in ('train', 'val'):
            (path / 'pictures' / split / name).mkdir(parents=True)
            cv2.imwrite(str(path / 'pictures' / split / name / '0.png'), rng.integers(0, 255, (32, 32, 3), np.uint8))
    for name, text in (('det', DETECTOR), ('cls', CLASSIFIER)):
        (path / f'{name}.py').write_text(text)
        cfg = Config.fromfile(path / f'{name}.py')
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), path / f'{name}.pth')
    for name, (right, wrong) in CONFIGS.items():
        assert right in DETECTOR
        (path / f'{name}.py').write_text(DETECTOR.replace(right, wrong))
    (path / 'nodelete.py').write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\nmodel = dict(backbone=dict(\n    "
        "type='rkan_mm.RKANet', backbone={{_base_.model.backbone}}))\n")
    for name in ('notes.txt', 'notes.pth'):
        (path / name).write_text('no config, no checkpoint')
    return path


@pytest.fixture
def own_loggers(monkeypatch):
    """Loggers of mmengine for this test alone; those of others have streams that are closed."""
    loggers = OrderedDict()
    monkeypatch.setattr(MMLogger, '_instance_dict', loggers)
    yield
    for logger in loggers.values():
        for handler in logger.handlers:
            handler.close()


@pytest.mark.parametrize('line', MISTAKES)
@pytest.mark.usefixtures('own_loggers')
def test_one_sentence(folder, line, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        cli.main(shlex.split(line))
    shown = stopped.value.code if isinstance(stopped.value.code, str) else capfd.readouterr().err
    assert stopped.value.code == 2 or line.startswith('trian')
    assert 'Traceback' not in shown
    assert re.search(MISTAKES[line], shown.replace('\n', ' ')), shown
    shutil.rmtree('work_dirs', ignore_errors=True)
