"""Weights fit models that mean something else by them; what a checkpoint was trained as tells them apart."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from small_runs import CLASSIFIER, DETECTOR, write_run

from rkan_mm.apis import runner
from rkan_mm.preflight.origin import differences

COCO = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
OTHERS = {  # an option of the test, and what is said of it; None where predictions stay as they are
    'model.backbone.block=dict(basis=dict(type="Legendre"),type="RKANBlock")':
        'model.backbone.block.basis.type=Chebyshev (here Legendre)',
    'model.backbone.block=dict(type="RKANBlock",basis=dict(type="Chebyshev",degree=3))': None,
    'model.backbone.block=dict(type="RKANBlock",residual_init=0.1)':
        'model.backbone.block.residual_init=1.0 (here 0.1)',
    'model.backbone.backbone.style="caffe"': 'model.backbone.backbone.style=pytorch (here caffe)',
    'model.backbone.backbone.frozen_stages=1': None,
    'model.backbone.backbone.norm_cfg=dict(type="BN",requires_grad=False)': None,
    'model.backbone.backbone.norm_cfg=dict(type="SyncBN",requires_grad=True)': None,
    'model.bbox_head.reg_decoded_bbox=True': None,
    'model.data_preprocessor.bgr_to_rgb=True': 'model.data_preprocessor.bgr_to_rgb=False (here True)',
    'model.bbox_head.bbox_coder=dict(type="DeltaXYWHBBoxCoder",target_stds=[0.1,0.1,0.2,0.2])':
        'model.bbox_head.bbox_coder.target_stds=[1.0, 1.0, 1.0, 1.0] (here [0.1, 0.1, 0.2, 0.2])',
    'model.bbox_head.loss_cls=dict(type="FocalLoss",gamma=1.0)': None,
    'model.test_cfg.score_thr=0.3': None,
    'model.type="ATSS"': None,
}


def read(text, *options):
    cfg = Config.fromstring(text, '.py')
    for option in options:
        name, _, value = option.partition('=')
        cfg.merge_from_dict({name: eval(value)})
    return cfg


@pytest.mark.parametrize('option', OTHERS)
def test_arguments_that_no_weight_shows(option):
    init_default_scope('mmdet')
    found = differences(dict(meta=dict(cfg=read(DETECTOR).pretty_text)), read(DETECTOR, option))
    expected = OTHERS[option]
    assert found == (expected and f'The checkpoint was trained with {expected}. Its weights fit, but mean something '
                     'else.')


def test_a_type_that_mm_fills_in_while_it_builds():
    init_default_scope('mmpretrain')
    cfg = read(CLASSIFIER, 'data_preprocessor=dict(mean=[1.0],std=[2.0])')
    trained = dict(meta=dict(cfg=cfg.pretty_text))
    cfg.data_preprocessor.type = 'ClsDataPreprocessor'
    assert differences(trained, cfg) is None
    cfg.data_preprocessor.std = [3.0]
    assert 'data_preprocessor.std=' in differences(trained, cfg)


def test_what_wraps_a_model_does_not_count():
    init_default_scope('mmdet')
    cfg = read(DETECTOR)
    trained = dict(meta=dict(cfg=cfg.pretty_text))
    cfg.model = dict(type='DetTTAModel', module=cfg.model)
    assert differences(trained, cfg) is None
    student = dict(meta=dict(cfg=f'model = dict(type="SoftTeacher", detector={read(DETECTOR).model.to_dict()!r})'))
    assert differences(student, read(DETECTOR)) is None
    assert 'style=pytorch' in differences(student, read(DETECTOR, 'model.backbone.backbone.style="caffe"'))


def test_a_plain_checkpoint_in_a_rkanet():
    init_default_scope('mmdet')
    plain = read(DETECTOR)
    plain.model.backbone = plain.model.backbone.backbone
    trained = dict(meta=dict(cfg=plain.pretty_text))
    assert differences(trained, read(DETECTOR)) is None
    assert 'style=pytorch' in differences(trained, read(DETECTOR, 'model.backbone.backbone.style="caffe"'))


def test_a_preprocessor_on_top_of_the_config():
    init_default_scope('mmpretrain')
    cfg = read(CLASSIFIER)
    cfg.data_preprocessor = COCO
    trained = dict(meta=dict(cfg=cfg.pretty_text))
    assert differences(trained, cfg) is None
    assert 'model.data_preprocessor.mean=[123.675, 116.28, 103.53] (here' in differences(
        trained, read(CLASSIFIER, 'data_preprocessor=dict(mean=[0,0,0],std=[1,1,1])'))


@pytest.mark.parametrize('meta', [None, {}, dict(cfg=None), dict(cfg='model = ('), dict(cfg='model = open("a", "w")'),
                                  dict(cfg='import os; os.mkdir("ran")'), dict(cfg=dict(a=1)), dict(cfg='model = 3')])
def test_texts_that_are_no_config_are_passed_over_and_do_not_run(meta, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert differences(dict(meta=meta), read(DETECTOR)) is None
    assert not os.listdir()


def test_a_test_says_so_in_red(small_data, tmp_path, capsys):
    argv = write_run(tmp_path, 'detector', DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))))
    content = torch.load(argv[1], weights_only=True)
    torch.save(dict(content, meta=dict(cfg=Config.fromfile(argv[0]).pretty_text)), argv[1])
    runner.test([*argv, '--work-dir', str(tmp_path)])
    assert 'WARNING: The checkpoint' not in capsys.readouterr().out
    runner.test([*argv, '--work-dir', str(tmp_path), '--cfg-options', 'model.backbone.backbone.style=caffe'])
    assert ('WARNING: The checkpoint was trained with model.backbone.backbone.style=pytorch (here caffe). Its weights '
            'fit, but mean something else.') in capsys.readouterr().out
