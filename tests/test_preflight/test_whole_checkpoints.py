"""A model that is tested or predicts has all weights of its checkpoint, or says so beside the result."""

import ast

import cv2
import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from rkan_mm.apis import infer, runner
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.preflight import PreflightError, check_fit, load_for_testing
from rkan_mm.preflight.fit import fit
from rkan_mm.preflight.weights import check_whole

RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=4, stem_channels=4, norm_eval=False)
RKAN = dict(type='rkan_mm.RKANet', backbone=RESNET)


def net(**changes) -> nn.Module:
    return MODELS.build({**RKAN, **changes})


def detector(backbone, num_classes=3) -> nn.Module:
    init_default_scope('mmdet')
    return MODELS.build(dict(
        type='RetinaNet', backbone=backbone,
        neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=num_classes, in_channels=8, feat_channels=8, stacked_convs=1)))


REFUSED = {  # what is built for testing, what was trained, what is said
    'a plain config, a RKAN checkpoint': (
        lambda: detector(RESNET), lambda: detector(RKAN),
        r'100 entries of the model are not in it \(backbone \(100\)\), 116 of its entries have no place'),
    'a RKAN config, a plain checkpoint': (
        lambda: detector(RKAN), lambda: detector(RESNET),
        r'16 entries of the model are not in it \(backbone.bridges \(16\)\)\. The result would be that of another mod'),
    'another number of classes': (
        lambda: detector(RKAN, 3), lambda: detector(RKAN, 80),
        r'2 do not fit \(bbox_head.retina_cls.weight \(720, 8, 3, 3\), here \(27, 8, 3, 3\), '),
    'a deeper backbone': (
        lambda: detector(RESNET), lambda: detector(dict(RESNET, depth=34)), r'have no place in the model \(backbone'),
    'a block on one more stage': (
        lambda: detector(RKAN), lambda: detector(dict(RKAN, stages=('layer3', 'layer4'))),
        r'have no place in the model \(backbone.bridges.layer3 \(\d+\)\)'),
    'another basis': (
        lambda: net(block=dict(type='RKANBlock', basis=dict(type='Chebyshev', degree=5))), net,
        r'1 do not fit \(bridges.layer4.block.kan1.weight \(4, 3, 3\), here \(6, 3, 3\)\)'),
    'a zero block with a gate, which does change the output': (
        lambda: net(block=dict(type='RKANBlock', zero_init_residual=True), fusion=dict(type='Gating')),
        lambda: MODELS.build(RESNET), r'18 entries of the model are not in it \(bridges \(18\)\)'),
    'a single missing bias': (
        lambda: nn.Linear(1, 1), lambda: nn.Linear(1, 1, bias=False), r'1 entries of the model are not in it \(bias\)'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_another_model_is_refused(case):
    build, trained, message = REFUSED[case]
    model, weights = build(), trained().state_dict()
    with pytest.raises(PreflightError, match=f"Checkpoint 'a.pth': .*{message}"):
        check_whole(model, weights, 'a.pth')
    assert 'This is the result of another model' in check_whole(model, weights, 'a.pth', allow_partial=True)


@pytest.mark.parametrize('fusion', ['Addition', 'SE'])
def test_zero_blocks_alone_are_harmless(fusion):
    model, plain = net(block=dict(type='RKANBlock', zero_init_residual=True), fusion=dict(type=fusion)), MODELS.build(
        RESNET)
    assert check_whole(model, plain.state_dict(), 'a.pth') is None
    model.load_state_dict(plain.state_dict(), strict=False)
    for each in (model, plain):
        each.eval()
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(x)[-1], plain(x)[-1])


@pytest.mark.parametrize(('extra', 'said'), [
    ({'fc.weight': torch.zeros(1)}, r'1 of its entries have no place in the model \(fc\)'),
    ({'bbox_head.loss_cls.cum_samples': torch.zeros(1), 'ema_backbone_conv1_weight': torch.zeros(1)}, None),
    ({'backbone.layer1.0.position_ids': torch.arange(3)}, None),
])
def test_what_testing_does_not_need(extra, said):
    model = detector(RESNET)
    found = check_whole(model, {**model.state_dict(), **extra}, 'a.pth')
    assert (said is None) == (found is None)
    assert said is None or found.endswith('have no place in the model (fc).')


def test_a_student_and_a_teacher_take_a_supervised_checkpoint(tmp_path):
    init_default_scope('mmdet')
    cfg = get_config('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    cfg.model.detector.backbone = RKAN
    cfg.model.detector.neck.in_channels = [4, 8, 16, 32]
    supervised, semi = MODELS.build(cfg.model.detector), MODELS.build(cfg.model)
    before = {name: value.clone() for name, value in semi.state_dict().items()}
    torch.save(dict(state_dict=supervised.state_dict()), tmp_path / 'supervised.pth')
    check_fit(semi, str(tmp_path / 'supervised.pth'))
    assert check_whole(semi, supervised.state_dict(), 'a.pth') is None
    assert all(torch.equal(value, before[name]) for name, value in semi.state_dict().items())  # looking changes nothing
    assert next(semi.parameters()).device.type == 'cpu'


def test_a_model_for_test_time_augmentation():
    plain = detector(RKAN)
    tta = MODELS.build(dict(type='DetTTAModel', module=plain))
    assert check_whole(tta, plain.state_dict(), 'a.pth') is None


def test_position_embeddings_are_resized():
    def vit(size):
        return MODELS.build(dict(type='mmpretrain.VisionTransformer', arch=dict(
            embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16), img_size=size, patch_size=16))
    assert fit(vit(64), vit(32).state_dict()).unfit == []
    assert check_whole(vit(64), vit(32).state_dict(), 'a.pth') is None


def test_a_checkpoint_with_weights_under_another_name(tmp_path):
    source, model = net(), net()
    torch.save(dict(model={f'module.{name}': value for name, value in source.state_dict().items()}, epoch=3),
               tmp_path / 'a.pth')
    assert load_for_testing(model, str(tmp_path / 'a.pth'))['epoch'] == 3
    assert torch.equal(model.bridges['layer4'].block.expand.weight, source.bridges['layer4'].block.expand.weight)


def test_a_finer_grid_in_the_checkpoint():
    source, model = (nn.Sequential(MODELS.build(dict(type='rkan_mm.KANLinear', in_features=2, out_features=2)))
                     for _ in range(2))
    source[0].refine_grid(10)
    assert check_whole(model, source.state_dict(), 'a.pth') is None
    assert model[0].basis.grid_size == 5
    model.load_state_dict(source.state_dict())
    assert model[0].basis.grid_size == 10


TINY = ['model.backbone.backbone.base_channels=4', 'model.backbone.backbone.stem_channels=4',
        'model.neck.in_channels=[4,8,16,32]', 'model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=5']


@pytest.fixture
def trained_on_two_classes(root, tmp_path):
    """Command line of a Mask R-CNN of five classes, and the checkpoint of one of two."""
    data = make_shapes(tmp_path / 'shapes', 1, 1, size=64)
    config = root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py'
    options = ['--cfg-options', f'data_root={data}', *TINY]
    cfg = runner.load_config(str(config), {name: ast.literal_eval(value) for name, _, value in
                                           (option.partition('=') for option in TINY)})
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b')))),
               tmp_path / 'two.pth')
    return str(config), str(tmp_path / 'two.pth'), options, data


UNFIT = r"two.pth': 4 do not fit \(roi_head.bbox_head.fc_cls.weight \(3, 256\), here \(6, 256\)"


def test_tools_refuse_or_warn_beside_the_result(trained_on_two_classes, tmp_path, capsys):
    config, checkpoint, options, data = trained_on_two_classes
    image = str(next((data / 'val').glob('*.png')))
    work = ['--work-dir', str(tmp_path / 'work')]
    with pytest.raises(PreflightError, match=UNFIT):
        runner.test([config, checkpoint, *work, *options])
    with pytest.raises(PreflightError, match=UNFIT):
        infer.main([config, checkpoint, image, '--out-dir', str(tmp_path / 'out'), *options])
    assert not (tmp_path / 'out').exists()
    capsys.readouterr()
    assert 'coco/bbox_mAP' in runner.test([config, checkpoint, *work, '--allow-partial', *options])
    assert 'WARNING: Checkpoint' in capsys.readouterr().out.splitlines()[-1]
    infer.main([config, checkpoint, image, '--out-dir', str(tmp_path / 'out'), '--allow-partial', *options])
    *_, warning, last = capsys.readouterr().out.splitlines()
    assert 'This is the result of another model than the one that was trained.' in warning
    assert last.startswith('1 images: ')


CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)),
    neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=32))
test_dataloader = dict(dataset=dict(type='CustomDataset', pipeline=[dict(type='LoadImageFromFile'),
                                                                    dict(type='PackInputs')]))
"""


def test_inference_with_a_checkpoint_that_fits_nothing(tmp_path):
    (tmp_path / 'classifier.py').write_text(CLASSIFIER)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((32, 32, 3), np.uint8))
    torch.save(dict(state_dict={'encoder.weight': torch.zeros(1)}), tmp_path / 'other.pth')
    argv = [str(tmp_path / 'classifier.py'), str(tmp_path / 'other.pth'), str(tmp_path / 'a.png'), '--out-dir',
            str(tmp_path / 'out')]
    for allowed in ([], ['--allow-partial']):  # a result of random weights alone is nobody's wish
        with pytest.raises(PreflightError, match=r"other.pth' fits nothing of the model: it has encoder"):
            infer.main([*argv, *allowed])
    assert not list(tmp_path.glob('out/**/*.json'))
