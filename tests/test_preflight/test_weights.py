"""Weights from elsewhere: torchvision's, a classifier's, a plain detector's; what is loaded is reported."""

import copy
import json
import logging

import pytest
import torch
import torchvision
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage, PretrainedInit
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from pycocotools.mask import area
from torch import nn
from torch.testing import assert_close

from rkan_mm.apis import runner
from rkan_mm.apis.loading import _move
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.models import RKANet
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.fit import fit, summary
from rkan_mm.preflight.weights import check_fit, check_pretrained

NARROW = dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)


def save(state_dict: dict, path) -> str:
    torch.save(dict(state_dict=state_dict), path)
    return str(path)


@pytest.fixture
def said():
    """What is logged through mmengine from here on."""
    from mmengine.logging import MMLogger
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_summary_names_whole_modules():
    everything = ['a.x.weight', 'a.x.bias', 'a.y.weight', 'b.weight']
    assert summary(['a.x.weight', 'a.x.bias'], everything) == 'a.x (2)'
    assert summary(['a.x.weight', 'a.y.weight', 'b.weight'], everything) == 'a.x.weight, a.y, b'


def test_torchvisions_layout_enters_a_rkanet(tmp_path, said):
    """What ``init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')`` reads, made up here."""
    theirs = torchvision.models.resnet50(num_classes=3).state_dict()
    path = tmp_path / 'resnet50.pth'
    torch.save(theirs, path)  # a bare state_dict, as torchvision's files are
    model = RKANet(dict(type='mmdet.ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint=str(path))))
    check_pretrained(model)
    assert f'Weights of {path} for backbone (ResNet):\n  265 of 265 entries of the model are loaded\n' \
           '  2 of the checkpoint have no place: fc (2)' in said
    model.init_weights()
    assert_close(model.backbone.layer4[2].conv3.weight.detach(), theirs['layer4.2.conv3.weight'])
    outer = RKANet(dict(type='mmdet.ResNet', depth=50), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    check_pretrained(outer)
    assert '16 are new: bridges (16)' in said[-1]
    outer.init_weights()
    assert_close(outer.backbone.state_dict(), {key: value for key, value in theirs.items() if key[:2] != 'fc'})


def classifier() -> nn.Module:
    init_default_scope('mmpretrain')
    return MMENGINE_MODELS.build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='rkan_mm.RKANet', backbone=NARROW | dict(type='mmpretrain.ResNet')),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=64)))


def test_a_classifier_starts_a_detectors_backbone(tmp_path):
    source = classifier()
    nn.init.normal_(source.backbone.bridges['layer4'].block.norm2.bias)
    path = save(source.state_dict(), tmp_path / 'classifier.pth')
    model = RKANet(dict(NARROW), init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    check_pretrained(model)
    model.init_weights()
    assert_close(model.state_dict(), source.backbone.state_dict())


def test_of_a_classifier_with_moving_averages_these_are_taken(tmp_path):
    """EMAHook of mmengine saves the averages as ``state_dict``, and what was trained as ``ema_state_dict``."""
    source = classifier()
    hook = EMAHook()
    hook.src_model, hook.ema_model = source, ExponentialMovingAverage(source)
    with torch.no_grad():
        for parameter in hook.ema_model.module.parameters():
            parameter += 1
    checkpoint = dict(state_dict=source.state_dict())
    hook.before_save_checkpoint(None, checkpoint)
    torch.save(checkpoint, tmp_path / 'ema.pth')
    averages = hook.ema_model.module.backbone.state_dict()
    model = RKANet(dict(NARROW), init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'ema.pth'),
                                               prefix='backbone'))
    check_pretrained(model)
    model.init_weights()
    assert_close(dict(model.named_parameters()), {key: averages[key] for key, _ in model.named_parameters()})
    bare = hook.ema_model.state_dict()  # what only the averages were saved of: 'steps' and 'module.*'
    result = fit(classifier(), bare)
    assert (result.new, result.unfit, result.left) == ([], [], ['steps'])


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', num_train=2, num_val=4, size=64)


def shrink(cfg: Config, shapes) -> Config:
    """A Mask R-CNN of mmdet's, at a width and on data for tests."""
    small = Config.fromfile(ROOT / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    inner = cfg.model.backbone.get('backbone', cfg.model.backbone)
    inner.update(depth=18, base_channels=8, stem_channels=8)
    for part in ('neck', 'rpn_head', 'roi_head', 'test_cfg'):
        cfg.model[part] = copy.deepcopy(small.model[part])
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'):
        cfg[key] = copy.deepcopy(small[key])
    cfg = Config(_move(cfg._cfg_dict, 'data/shapes', str(shapes)))
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    return cfg


@pytest.fixture(scope='module')
def plain_detector(shapes, tmp_path_factory):
    """Config and checkpoint of a plain Mask R-CNN, small and random."""
    cfg = shrink(Config.fromfile(ROOT / 'configs/coco/mask-rcnn_r50_fpn_mmdet-1x_coco.py'), shapes)
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MMENGINE_MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if 'fc_cls' in name or 'rpn_cls' in name:
            nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp('plain')
    cfg.dump(folder / 'plain.py')
    return folder / 'plain.py', save(model.state_dict(), folder / 'plain.pth')


def test_the_zero_init_recipe_begins_at_the_plain_detectors_ap(plain_detector, shapes, tmp_path):
    config, checkpoint = plain_detector
    cfg = shrink(Config.fromfile(ROOT / 'configs/coco/mask-rcnn_rkanet50-zero-init_fpn_mmdet-1x_coco.py'), shapes)
    assert cfg.load_from.endswith('.pth')
    cfg.load_from = None
    cfg.dump(tmp_path / 'rkan.py')
    def test(path, *options):
        return runner.test([str(path), checkpoint, '--allow-partial', '--work-dir', str(tmp_path / 'work'),
                            '--cfg-options', 'preflight.evaluator=False', *options])

    test(config, f'test_evaluator.outfile_prefix={tmp_path}/found')
    truth = f'test_evaluator.ann_file={found_as_truth(tmp_path, shapes)}'
    plain, with_rkan = test(config, truth), test(tmp_path / 'rkan.py', truth)
    assert len(with_rkan) == 12
    assert min(plain['coco/bbox_mAP'], plain['coco/segm_mAP']) > 0.01
    assert with_rkan == plain
    assert test(tmp_path / 'rkan.py', truth, 'model.backbone.block.zero_init_residual=False') != plain


def found_as_truth(folder, shapes):
    """Annotations in which a random detector finds something: every third of its own detections."""
    found = json.loads((folder / 'found.segm.json').read_text())
    boxes = json.loads((folder / 'found.bbox.json').read_text())
    truth = json.loads((shapes / 'annotations/val.json').read_text())
    truth['annotations'] = [
        dict(mask, id=i + 1, bbox=box['bbox'], area=float(area(mask['segmentation'])), iscrowd=0)
        for i, (mask, box) in enumerate(zip(found, boxes, strict=True))
        if i % 3 == 0 and area(mask['segmentation']) > 0]
    (folder / 'truth.json').write_text(json.dumps(truth))
    return folder / 'truth.json'


def test_a_plain_detector_warms_up_a_rkanet_one(plain_detector, shapes, tmp_path, said):
    cfg = shrink(Config.fromfile(ROOT / 'configs/coco/mask-rcnn_rkanet50_fpn_mmdet-1x_coco.py'), shapes)
    cfg.model.backbone.backbone.init_cfg = None
    cfg.merge_from_dict({'train_cfg.max_epochs': 1, 'load_from': plain_detector[1], 'optim_wrapper.optimizer.lr': 0.0,
                         'param_scheduler': [], 'val_cfg': None, 'val_dataloader': None, 'val_evaluator': None})
    cfg.dump(tmp_path / 'rkan.py')
    trained = runner.train([str(tmp_path / 'rkan.py'), '--work-dir', str(tmp_path / 'work')])
    log = next((tmp_path / 'work').rglob('*.log')).read_text()
    assert f'Weights of {plain_detector[1]} for the model:\n' in log
    assert '16 are new: backbone.bridges (16)\n' in log
    assert 'no place' not in log
    source = torch.load(plain_detector[1], weights_only=True)['state_dict']
    assert_close(trained.model.backbone.backbone.layer4[1].conv2.weight.detach(),
                 source['backbone.layer4.1.conv2.weight'])
    assert_close(trained.model.roi_head.mask_head.conv_logits.weight.detach(),
                 source['roi_head.mask_head.conv_logits.weight'])


def test_other_classes_are_reported_by_shape():
    model, other = classifier(), classifier()
    other.head.fc = nn.Linear(64, 5)
    result = fit(model, other.state_dict())
    assert result.unfit == ['head.fc.weight (5, 64), here (2, 64)', 'head.fc.bias (5,), here (2,)']
    assert (result.new, result.left) == ([], [])
    load_state_dict(model, other.state_dict(), strict=False)  # which is what happens: they stay as they are
    assert result.loaded == len([key for key in model.state_dict() if 'num_batches' not in key]) - 2


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])  # pure Python configs name the class
@pytest.mark.parametrize(('prefix', 'message'), [
    (None, r"other.pth' fits nothing of backbone \(ResNet\): it has encoder.weight, encoder.bias; backbone \(ResNet\) "
           r'has bn1.bias, '),
    ('backbone', r"init_cfg of backbone \(ResNet\): nothing in .* begins with 'backbone.'; it has encoder"),
])
def test_an_init_cfg_that_fits_nothing(tmp_path, kind, prefix, message):
    path = save(nn.ModuleDict(dict(encoder=nn.Linear(1, 1))).state_dict(), tmp_path / 'other.pth')
    init_cfg = dict(type=kind, checkpoint=path) | (dict(prefix=prefix) if prefix else {})
    model = RKANet(NARROW | dict(init_cfg=init_cfg))
    with pytest.raises(PreflightError, match=message):
        check_pretrained(model)


def test_the_weights_of_a_backbone_for_a_model_and_the_reverse(tmp_path):
    alone = nn.Linear(1, 1)
    whole = nn.ModuleDict(dict(backbone=alone))
    paths = {each: save(each.state_dict(), tmp_path / f'{type(each).__name__}.pth') for each in (alone, whole)}
    with pytest.raises(PreflightError, match=r"of the backbone alone: give them by model.backbone.init_cfg=dict"):
        check_fit(whole, paths[alone])
    with pytest.raises(PreflightError, match="They are of a model around it: prefix='backbone.' takes them"):
        check_fit(alone, paths[whole])
    model = RKANet(NARROW | dict(init_cfg=dict(type='Pretrained', prefix='backbone')))
    model.backbone.init_cfg['checkpoint'] = save(model.backbone.state_dict(), tmp_path / 'backbone.pth')
    with pytest.raises(PreflightError, match="begins with 'backbone.'; it has .* Leave prefix out"):
        check_pretrained(model)
    detector = nn.ModuleDict(dict(backbone=model))
    model.backbone.init_cfg['checkpoint'] = save(detector.state_dict(), tmp_path / 'detector.pth')
    with pytest.raises(PreflightError, match="prefix='backbone.backbone.' takes them"):
        check_pretrained(model)
