import copy
import re
import subprocess
import sys
from functools import partial

import golden
import pytest
import timm
import torch
import torchvision
from conftest import ROOT
from families import BACKBONES, attention
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import nn
from torch.testing import assert_close

from rkan_mm.apis.convert import _classes_of_mmdet, convert_plain, convert_residualkan, main
from rkan_mm.models import RKANet
from rkan_mm.preflight import PreflightError

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='rkan_mm.RKANet', backbone=dict(type='ResNet', depth=18)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=512))
"""


@pytest.fixture
def source():
    return golden.state_dict('resnet18_default')


def test_command_line(source, tmp_path, root):
    torch.save(dict(state_dict={f'module.{key}': value for key, value in source.items()}), tmp_path / 'src.pth')
    (tmp_path / 'config.py').write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, root / 'tools/convert_checkpoint.py', 'residualkan', tmp_path / 'src.pth',
         tmp_path / 'new' / 'dst.pth', '--config', tmp_path / 'config.py'], capture_output=True, text=True, check=True)
    assert '0 in the model, not in the source' in done.stdout
    assert 'gate_convs.3.weight' in done.stdout  # built by the reference, used by none: said, not dropped in silence
    converted = torch.load(tmp_path / 'new' / 'dst.pth', weights_only=True)['state_dict']
    assert_close(converted['head.fc.weight'], source['resnet.fc.weight'])
    assert_close(converted['backbone.bridges.layer4.block.kan1.weight'][2, 1, 0],
                 source['kan_conv1.3.convs.0.conv.polynomial_weight'][0, 3, 2])


def test_command_line_for_plain_weights(tmp_path, capsys):
    plain = torchvision.models.resnet18(num_classes=10).state_dict()
    torch.save(plain, tmp_path / 'src.pth')
    (tmp_path / 'config.py').write_text(CONFIG)
    main(['torchvision', str(tmp_path / 'src.pth'), str(tmp_path / 'dst.pth'), '--config', str(tmp_path / 'config.py')])
    said = capsys.readouterr().out
    assert '122 entries converted\n0 in the source, without a place in the model\n' in said
    assert 'backbone.bridges.layer4.block.reduce.weight' in said
    converted = torch.load(tmp_path / 'dst.pth', weights_only=True)['state_dict']
    assert_close(converted['backbone.backbone.layer4.1.conv2.weight'], plain['layer4.1.conv2.weight'])


def test_what_is_read_is_not_written_over(tmp_path):
    path = tmp_path / 'src.pth'
    torch.save({}, path)
    with pytest.raises(PreflightError, match="src.pth' is the checkpoint that is read: name another file to write"):
        main(['torchvision', str(path), str(tmp_path / '../' / tmp_path.name / 'src.pth'), '--config', 'a.py'])


def test_every_key_is_accounted_for(source):
    model = RKANet(dict(type='mmdet.ResNet', depth=18))
    converted, report = convert_residualkan(source, model)
    assert set(report.used) | set(report.unused) == set(source)
    assert set(report.used.values()) == set(converted) == set(model.state_dict())
    assert 'resnet.fc.weight' in report.unused


def test_missing_keys_are_reported(source):
    model = RKANet(dict(type='mmdet.ResNet', depth=18))
    del source['resnet.layer1.0.conv1.weight']
    report = convert_residualkan(source, model)[1]
    assert report.missing == ['backbone.layer1.0.conv1.weight']
    assert 'backbone.layer1.0.conv1.weight' in str(report)


def test_another_architecture_is_named(source):
    model = RKANet(dict(type='mmdet.ResNet', depth=18), block=dict(type='RKANBlock', reduction=4))
    with pytest.raises(ValueError, match=r'kan_bn.3.weight \(128,\) does not fit .*norm1.weight \(64,\)|conv_reduce.3'):
        convert_residualkan(source, model)


def test_a_foreign_checkpoint():
    with pytest.raises(ValueError, match=r'none of the source keys is one of a reference RKANet .* it has a.weight'):
        convert_residualkan({'a.weight': torch.zeros(1)}, RKANet(dict(type='mmdet.ResNet', depth=18)))


def test_a_model_without_rkan(source):
    with pytest.raises(ValueError, match='ResNet has no RKANet'):
        convert_residualkan(source, MMENGINE_MODELS.build(dict(type='mmdet.ResNet', depth=18)))


PLAIN_DENSENET = dict(type='mmpretrain.DenseNet', arch='121')
# library, model: our backbone of the same architecture
PLAIN = {
    ('torchvision', 'resnet18'): BACKBONES['RKANet']('resnet18'),
    ('torchvision', 'resnet50'): dict(type='mmdet.ResNet', depth=50, out_indices=(3,)),
    ('torchvision', 'resnext50_32x4d'): BACKBONES['RKANeXt']('resnext50_32x4d'),
    ('torchvision', 'wide_resnet50_2'): BACKBONES['RKAN_WideResNet']('wide_resnet50_2'),
    ('torchvision', 'regnet_y_400mf'): BACKBONES['RKAN_RegNet']('regnet_y_400mf'),
    ('torchvision', 'regnet_x_3_2gf'): BACKBONES['RKAN_RegNet']('regnet_x_3_2gf'),
    ('torchvision', 'densenet121'): PLAIN_DENSENET,
    ('timm', 'resnet50d'): BACKBONES['RKANet_D']('resnetd50'),
    ('timm', 'seresnet50'): attention(50, 'SE', bias=True),
    ('timm', 'ecaresnet50d'): dict(attention(50, 'ECA'), backbone=BACKBONES['RKANet_D']('resnetd50')),
    ('timm', 'resnest50d'): dict(type='mmpretrain.ResNeSt', depth=50),
    ('timm', 'res2net50_26w_4s'): BACKBONES['RKAN_Res2Net']('res2net50'),
    ('timm', 'regnety_004'): BACKBONES['RKAN_RegNet']('regnet_y_400mf'),
    ('timm', 'densenet121'): PLAIN_DENSENET,
}


@pytest.mark.parametrize(('library', 'name'), PLAIN, ids=map('-'.join, PLAIN))
def test_plain_weights_give_the_same_logits(library, name):
    create = torchvision.models.get_model if library == 'torchvision' else timm.create_model
    theirs = create(name, num_classes=7)
    for key, value in theirs.state_dict().items():  # no constants that could be swapped unseen
        if key.endswith(('running_mean', 'bias')):
            value.normal_(std=0.1)
        elif key.endswith('running_var') or (value.dim() == 1 and key.endswith('weight')):
            value.uniform_(0.5, 1.5)
    width = next(shape[1] for shape in (p.shape for p in reversed(list(theirs.parameters()))) if len(shape) == 2)
    ours = MMENGINE_MODELS.build(dict(
        type='mmpretrain.ImageClassifier', backbone=dict(type='rkan_mm.RKANet', backbone=PLAIN[library, name],
                                                      stages=()),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=7, in_channels=width)))
    converted, report = convert_plain(theirs.state_dict(), ours, library)
    assert (report.unused, report.missing) == ([], [])
    ours.load_state_dict(converted, strict=True)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (ours, theirs):
        model.double().eval()
    assert_close(ours.head(ours.extract_feat(image)), theirs(image), rtol=1e-8, atol=1e-8)


def test_plain_weights_for_a_backbone_alone():
    theirs = torchvision.models.regnet_y_400mf(num_classes=7)
    ours = MMENGINE_MODELS.build(PLAIN['torchvision', 'regnet_y_400mf'])
    converted, report = convert_plain(theirs.state_dict(), ours, 'torchvision')
    assert report.unused == ['fc.weight', 'fc.bias']
    assert report.missing == []
    ours.load_state_dict(converted, strict=True)


def test_torchvisions_old_densenet_files():
    theirs = torchvision.models.densenet121()
    files = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', key): value
             for key, value in theirs.state_dict().items()}
    assert 'features.denseblock1.denselayer1.norm.1.weight' in files
    report = convert_plain(files, MMENGINE_MODELS.build(dict(PLAIN_DENSENET)), 'torchvision')[1]
    assert report.unused == ['classifier.weight', 'classifier.bias']
    assert report.missing == []


def test_plain_weights_leave_the_blocks_of_a_rkanet_missing():
    model = RKANet(dict(PLAIN_DENSENET), ('stages.3:transitions.3',))
    report = convert_plain(torchvision.models.densenet121().state_dict(), model, 'torchvision')[1]
    assert {key.split('.')[0] for key in report.missing} == {'bridges'}


def test_an_unknown_layout():
    with pytest.raises(ValueError, match="convert_plain: no layout 'keras'; there are torchvision, timm"):
        convert_plain({}, nn.Identity(), 'keras')


@pytest.fixture(scope='module')
def detectors():
    """Torchvision's Mask R-CNN with ResNet-18, its weights in mmdet's, and the report."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name='resnet18', weights=None, norm_layer=nn.BatchNorm2d,
                                   trainable_layers=5)
    theirs = MaskRCNN(backbone, num_classes=4, min_size=128, max_size=128, box_detections_per_img=300,
                      rpn_post_nms_top_n_test=50)
    box_predictor = theirs.roi_heads.box_predictor
    for part, std in ((theirs.rpn.head.cls_logits, 0.01), (theirs.rpn.head.bbox_pred, 0.002),
                      (box_predictor.cls_score, 0.05), (box_predictor.bbox_pred, 0.2)):
        nn.init.normal_(part.weight, std=std)  # else all scores are alike, and their order is noise
        nn.init.normal_(part.bias, std=0.1)
    cfg = Config(dict(Config.fromfile(ROOT / 'configs/mask-rcnn_r50_fpn_1x_coco.py').model))
    cfg.merge_from_dict({'backbone.depth': 18, 'neck.in_channels': [64, 128, 256, 512], 'backbone.init_cfg': None,
                         'roi_head.bbox_head.num_classes': 3, 'roi_head.mask_head.num_classes': 3,
                         'test_cfg.rcnn.max_per_img': 300, 'test_cfg.rpn.max_per_img': 50})
    for extractor in (cfg.roi_head.bbox_roi_extractor, cfg.roi_head.mask_roi_extractor):
        extractor.roi_layer.update(aligned=False, sampling_ratio=2)
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours = MMENGINE_MODELS.build(cfg)
    converted, report = convert_plain(theirs.state_dict(), ours, 'torchvision')
    ours.load_state_dict(converted, strict=True)
    theirs.rpn.anchor_generator.cell_anchors = ours.rpn_head.prior_generator.base_anchors  # theirs are rounded
    return theirs.eval(), ours.eval(), report


def test_torchvisions_mask_rcnn_finds_the_same(detectors):
    from mmdet.structures import DetDataSample
    theirs, ours, report = detectors
    assert (report.unused, report.missing) == ([], [])
    image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)  # RGB
    sample = DetDataSample(metainfo=dict(img_shape=(128, 128), ori_shape=(128, 128), scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        expected, = theirs([image / 255])
        found = ours.test_step(dict(inputs=[image.flip(0)], data_samples=[sample]))[0].pred_instances
    assert set(expected['labels'].tolist()) == {1, 2, 3}
    found = found[(found.bboxes[:, 2:] - found.bboxes[:, :2]).amin(1) >= 1e-2]  # torchvision drops these
    assert len(found) == len(expected['boxes']) > 30
    rows = torch.cat([found.bboxes, 1e3 * found.scores[:, None], 1e3 * found.labels[:, None]], 1)
    expected = torch.cat([expected['boxes'], 1e3 * expected['scores'][:, None],
                          1e3 * (expected['labels'][:, None] - 1)], 1)
    nearest = torch.cdist(expected, rows).argmin(1)  # equal scores may stand in another order
    assert sorted(nearest.tolist()) == list(range(len(rows)))
    assert_close(rows[nearest], expected, rtol=1e-3, atol=1e-2)


def test_torchvisions_mask_head_gives_the_same(detectors):
    theirs, ours, _ = detectors
    features = torch.randn(2, 256, 14, 14)
    with torch.no_grad():
        expected = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(features))[:, 1:]  # no background
        assert_close(ours.roi_head.mask_head(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('layout', ['torchvision', 'residualkan'])
def test_torchvisions_detector_leaves_the_blocks_of_a_rkanet_missing(detectors, layout):
    theirs, ours, _ = detectors
    ours = copy.deepcopy(ours)
    ours.backbone = RKANet(ours.backbone)
    convert = convert_residualkan if layout == 'residualkan' else partial(convert_plain, layout=layout)
    converted, report = convert(theirs.state_dict(), ours)
    assert report.unused == []
    assert {'.'.join(key.split('.')[:2]) for key in report.missing} == {'backbone.bridges'}
    assert_close(converted['backbone.backbone.conv1.weight'], theirs.backbone.body.conv1.weight.detach())


def test_torchvisions_91_classes_are_the_80_of_coco():
    from mmdet.datasets import CocoDataset
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta['categories']
    rows = torch.arange(91.)
    source = {'roi_heads.box_predictor.cls_score.bias': rows, 'roi_heads.mask_predictor.mask_fcn_logits.bias': rows,
              'roi_heads.box_predictor.bbox_pred.bias': torch.arange(364.)}
    classes, masks, boxes = _classes_of_mmdet(source, 81).values()
    assert [names[int(row)] for row in classes] == [*CocoDataset.METAINFO['classes'], '__background__']
    assert masks.tolist() == classes[:-1].tolist()
    assert boxes.tolist() == [4 * row + i for row in masks.tolist() for i in range(4)]
    assert len(_classes_of_mmdet({'cls_score.bias': rows}, 91)['cls_score.bias']) == 91


def test_weights_of_a_shallower_net_leave_gaps(tmp_path, capsys):
    from torchvision.models import resnet18
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / 'in.pth')
    (tmp_path / 'deeper.py').write_text("model = dict(type='mmpretrain.ResNet', depth=34)")
    main(['torchvision', str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), '--config', str(tmp_path / 'deeper.py')])
    assert ('WARNING: 80 entries of the backbone are not in the source, such as layer1.2.conv1.weight, and will start '
            'from random numbers: is the config of the same depth?') in capsys.readouterr().out
