"""Pure Python configs, whose types are classes and which have no default scope."""

import json
import sys
from collections import OrderedDict

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, Registry

from rkan_mm.apis import infer, loading, runner
from rkan_mm.apis.testing_options import _use_tta
from rkan_mm.benchmarks import models
from rkan_mm.inspection.subject import Subject
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.config import scope

RUN = """
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from torch.optim import SGD
default_scope = None
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.001))
"""
CONFIG = """
from mmengine.config import read_base

with read_base():
    from .run import *

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler
from mmpretrain.datasets import CustomDataset, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models.backbones import ResNet
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.models.losses import CrossEntropyLoss
from mmpretrain.models.necks import GlobalAveragePooling
from rkan_mm.models.backbones import RKANet
data_root = 'elsewhere'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=RKANet, backbone=dict(type=ResNet, depth=18, base_channels=4, stem_channels=4)),
    neck=dict(type=GlobalAveragePooling), head=dict(
        type=LinearClsHead, num_classes=3, in_channels=32, topk=(1,), loss=dict(type=CrossEntropyLoss)))
pipeline = [dict(type=LoadImageFromFile), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=CustomDataset, data_root=data_root, data_prefix='train', pipeline=pipeline))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=CustomDataset, data_root=data_root, data_prefix='val', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy, topk=(1,))
test_evaluator = val_evaluator
"""


OWN = """
from mmpretrain.models.classifiers import ImageClassifier


class Own(ImageClassifier):
    pass
"""


@pytest.fixture(params=['ImageClassifier', 'Own'])
def config(request, tmp_path, monkeypatch):
    """With a model of mmpretrain's, or of the user's own that inherits from it."""
    (tmp_path / 'run.py').write_text(RUN)
    (tmp_path / 'models_of_the_user.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    text = CONFIG.replace('type=ImageClassifier', f'type={request.param}')
    (tmp_path / 'pure.py').write_text(text.replace('data_root =', 'from models_of_the_user import Own\ndata_root =', 1))
    yield str(tmp_path / 'pure.py')
    sys.modules.pop('models_of_the_user', None)


def test_a_classifier_from_training_to_a_look_inside(config, small_data, tmp_path):
    root, work = f'data_root={small_data / "pictures"}', tmp_path / 'work'
    trained = runner.train([config, '--work-dir', str(work), '--test', '--cfg-options', root])
    assert trained.train_dataloader.dataset.data_root == str(small_data / 'pictures')
    again = Config.fromfile(work / 'pure.py')
    assert again.train_dataloader.dataset.data_root == str(small_data / 'pictures')
    weights = str(work / 'epoch_1.pth')
    figures = runner.test([config, weights, '--work-dir', str(work), '--tta', '--cfg-options', root])
    assert set(figures) == {'accuracy/top1'}
    infer.main([config, weights, str(small_data / 'pictures/val/cat'), '--out-dir', str(tmp_path / 'out')])
    assert json.loads((tmp_path / 'out/preds/0.json').read_text())['pred_class'] in ('cat', 'dog', 'owl')
    for path in (config, str(work / 'pure.py')):
        assert not Subject(loading.load_config(path), weights, [
            str(small_data / 'pictures/val/cat/0.png')]).is_detector


def test_the_head_of_a_classifier_is_measured_with_it(config):
    counted = [models.measure(config, (1, 3, 32, 32), training=False, rounds=0, memory=False, options={
        'model.head.num_classes': classes})['models']['rkan']['params'] for classes in (3, 4)]
    assert counted[1] - counted[0] == 33


def test_the_package_of_a_plugin_comes_before_the_one_that_it_inherits_from(monkeypatch):
    from mmpretrain.models import ImageClassifier
    own = type('Own', (ImageClassifier,), dict(__module__='plugin.models'))
    cfg = Config(dict(model=dict(type=own)))
    assert scope(cfg) == 'mmpretrain'
    monkeypatch.setitem(MODELS.children, 'plugin', Registry('model', scope='plugin'))
    assert scope(cfg) == 'plugin'


def test_a_detector_of_a_plugin_is_tested_like_others(monkeypatch):
    """--tta and --show-dir took it for a classifier."""
    from mmdet.models import RetinaNet
    registry = Registry('model', scope='plugin')
    registry.register_module('Own', module=type('Own', (RetinaNet,), dict(__module__='plugin.models')))
    monkeypatch.setitem(MODELS.children, 'plugin', registry)
    cfg = Config(dict(default_scope='plugin', model=dict(type='Own'), test_evaluator=[], test_dataloader=dict(
        dataset=dict(type='Own', pipeline=[dict(type='PackDetInputs')]))))
    assert scope(cfg) == 'plugin'
    _use_tta(cfg)
    assert cfg.model.type == 'rkan_mm.BoxTTAModel'


def test_a_model_whose_module_fails(tmp_path, monkeypatch, capsys):
    (tmp_path / 'models_that_fail.py').write_text('Own = own')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())
    with pytest.raises(PreflightError, match="model.type='models_that_fail.Own' cannot be imported: NameError: name "):
        scope(Config(dict(model=dict(type='models_that_fail.Own'))))
    assert 'models_that_fail.py", line 1' in capsys.readouterr().err
