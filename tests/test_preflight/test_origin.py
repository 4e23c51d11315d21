"""Weights fit models that mean something else by them; what a checkpoint was trained as tells them apart."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from small_runs import CLASSIFIER, DETECTOR, write_run

from rkan_mm.apis import runner
from rkan_mm.preflight.origin import differences, other_beginning

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


BEGINNINGS = {  # what of a training's config is another than the checkpoint's, and what is said of it
    'model.backbone.backbone.style="caffe"': 'model.backbone.backbone.style=pytorch (here caffe)',
    'model.backbone.block=dict(basis=dict(type="Legendre"),type="RKANBlock")':
        'model.backbone.block.basis.type=Chebyshev (here Legendre)',
    'model.data_preprocessor.bgr_to_rgb=False': 'pictures in RGB (here in BGR)',
    'model.data_preprocessor.mean=[103.53,116.28,123.675]':
        'model.data_preprocessor.mean=[123.675, 116.28, 103.53] (here [103.53, 116.28, 123.675])',
    'model.data_preprocessor.mean=[123.68,116.28,103.53]': None,
    'model.backbone.backbone.out_indices=(3,)': None,
    'model.backbone.backbone.zero_init_residual=False': None,
    'model.backbone.backbone.norm_cfg=dict(type="BN",momentum=0.01)': None,
    'model.bbox_head.num_classes=7': None,
    'model.bbox_head.anchor_generator=dict(type="AnchorGenerator",strides=[8])': None,
}


@pytest.mark.parametrize('option', BEGINNINGS)
@pytest.mark.parametrize('classifier', [True, False])
def test_weights_to_begin_with(option, classifier):
    init_default_scope('mmdet')
    pixels = 'model.data_preprocessor=dict(type="DetDataPreprocessor",bgr_to_rgb=True,**COCO)'
    trained = read(DETECTOR, pixels)
    if classifier:
        trained.model.type, trained.model.bbox_head = 'ImageClassifier', None
        trained.model.data_preprocessor = dict(type='ClsDataPreprocessor', to_rgb=True, **COCO)
    expected = BEGINNINGS[option]
    assert other_beginning(dict(meta=dict(cfg=trained.pretty_text)), read(DETECTOR, pixels, option)) == (
        expected and f'The checkpoint was trained with {expected}. Its weights fit, but mean something else.')


def test_another_net_to_begin_with_is_not_told_here():
    init_default_scope('mmdet')
    trained = read(DETECTOR, 'model.backbone=dict(type="ResNeXt",depth=50)', 'model.data_preprocessor=dict(**COCO)')
    assert other_beginning(dict(meta=dict(cfg=trained.pretty_text)), read(DETECTOR)) is None


def test_pretrained_backbones_say_so_in_red(small_data, tmp_path, capsys):
    argv = write_run(tmp_path, 'detector', DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))))
    content = torch.load(argv[1], weights_only=True)
    torch.save(dict(content, meta=dict(cfg=Config.fromfile(argv[0]).pretty_text)), argv[1])
    inner = 'model.backbone.backbone'
    command = [argv[0], '--work-dir', str(tmp_path / 'work'), '--cfg-options', f'{inner}.init_cfg.type=Pretrained',
               f'{inner}.init_cfg.checkpoint={argv[1]}', f'{inner}.init_cfg.prefix=backbone.backbone.']
    runner.train(command)
    assert 'WARNING: init_cfg' not in capsys.readouterr().out
    runner.train([*command, f'{inner}.style=caffe'])
    assert (f'WARNING: init_cfg of backbone.backbone (ResNet): The checkpoint was trained with {inner}.style=pytorch '
            '(here caffe).' in capsys.readouterr().out)


def test_a_training_says_so_in_red(small_data, tmp_path, capsys):
    argv = write_run(tmp_path, 'detector', DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))))
    content = torch.load(argv[1], weights_only=True)
    torch.save(dict(content, meta=dict(cfg=Config.fromfile(argv[0]).pretty_text)), argv[1])
    command = [argv[0], '--work-dir', str(tmp_path / 'work'), '--cfg-options', f'load_from={argv[1]}']
    runner.train(command)
    assert 'load_from: ' not in capsys.readouterr().out
    runner.train([*command, 'model.backbone.backbone.style=caffe'])
    assert ('WARNING: load_from: The checkpoint was trained with model.backbone.backbone.style=pytorch (here caffe).'
            in capsys.readouterr().out)
