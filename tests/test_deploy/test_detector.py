"""Detectors of mmdet as one graph, from pictures to boxes and masks: what comes out is what mmdet predicts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.ops import nms
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import digit_version
from torch import nn

from rkan_mm.deploy import files
from rkan_mm.deploy.departure import LEAST, Departure, departure
from rkan_mm.deploy.detector import DetectorGraph
from rkan_mm.deploy.errors import UnsupportedModelError
from rkan_mm.deploy.exported import ExportedModel
from rkan_mm.preflight import PreflightError

pytest.importorskip('onnxruntime')
NAMES = dict(
    retinanet='retinanet/retinanet_r50_fpn_1x_coco.py',
    fcos='fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    atss='atss/atss_r50_fpn_1x_coco.py',
    faster_rcnn='faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    mask_rcnn='mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    cascade='cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    panoptic='panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
)


def narrow(node):
    """Channels of a config's heads, and its classes, made few."""
    if isinstance(node, dict):
        return type(node)({key: narrow(value) for key, value in node.items()})
    if isinstance(node, (list, tuple)):
        return type(node)(map(narrow, node))
    return {256: 64, 1024: 32, 80: 3}.get(node, node)


def detector(name, **test_cfg):
    """Of three classes, narrow, with random weights that find something."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = narrow(get_config(f'mmdet::{NAMES[name]}').model)
    cfg.backbone = dict(type='rkan_mm.RKANet', stages=('layer3',), backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8))
    cfg.neck.in_channels = [8, 16, 32, 64]
    cfg.test_cfg.get('rcnn', cfg.test_cfg).update(test_cfg)
    model = MODELS.build(cfg).eval()
    for part, module in model.named_modules():
        if part.endswith(('cls', 'conv_logits', 'centerness', 'reg')) and isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.1 if part.endswith('reg') else 0.3)
    return model


def samples(*sizes):
    """Noise in blocks, packed as a pipeline does."""
    packed = []
    for i, (height, width) in enumerate(sizes):
        generator = np.random.default_rng(i)
        image = generator.integers(0, 256, (3, height // 8 + 1, width // 8 + 1)).repeat(8, 1).repeat(8, 2)
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height // 2, width // 2),
                                             scale_factor=(width / (width // 2), height / (height // 2)), img_id=i))
        packed.append(dict(inputs=torch.from_numpy(image[:, :height, :width].astype(np.uint8)), data_samples=sample))
    return packed


def same(ours, theirs):
    """Each detection has its twin, whatever the order of those of one score; one in fifty may fall at a threshold."""
    a, b = ours.pred_instances, theirs.pred_instances
    assert abs(len(a) - len(b)) <= len(b) / 50
    assert len(b) > 3
    twins = (a.labels[:, None] == b.labels) & torch.isclose(a.scores[:, None], b.scores, rtol=0, atol=1e-4) \
        & torch.isclose(a.bboxes[:, None], b.bboxes, rtol=0, atol=0.02).all(2)
    assert twins.any(0).float().mean() >= 0.98
    if 'masks' in b:
        assert a.masks.any()
        for i, j in twins.nonzero():
            assert (a.masks[i] == b.masks[j]).float().mean() > 0.999


CASES = [*((name, form) for form in ('onnx', 'torchscript', 'pt2') for name in [*NAMES][:5]),
         ('fcos', 'AOTInductor'), ('mask_rcnn', 'AOTInductor')]


@pytest.mark.parametrize(('name', 'form'), [
    pytest.param(*case, marks=[] if case[1] == 'onnx' else pytest.mark.slow)
    for case in CASES])
def test_predicts_what_mmdet_does(name, form, tmp_path):
    """In the oldest opset that has all."""
    model = detector(name)
    graph = DetectorGraph(model)
    info = dict(task='detection', outputs=graph.outputs, size=None, mask_threshold=graph.mask_threshold)
    path = tmp_path / f'model{files.SUFFIXES.get(form, ".pt2")}'
    image = torch.randint(0, 256, (2, 3, *LEAST), dtype=torch.uint8)
    files.write(graph, image, path, 'pt2' if form == 'AOTInductor' else form, info, True, graph.least_opset)
    exported = compiled(path, graph, info) if form == 'AOTInductor' else ExportedModel(*files.read(path, form))
    assert exported.info['outputs'] == list(graph.outputs)
    sizes = [(96, 128), (130, 90), (64, 64)]
    if form == 'pt2' and name in ('fcos', 'atss'):
        sizes = [(136, 128), (130, 90), (160, 72)]  # see the next test
    elif form == 'pt2' and digit_version(torch.__version__) < digit_version('2.13'):
        sizes = [(96, 128), (130, 120), (160, 64)]  # 2.12 takes maps for odd or even where FPN pools them
    for sample in samples(*sizes):
        with torch.no_grad():
            theirs = model.test_step(pseudo_collate([sample]))[0].clone()
        same(exported.test_step(pseudo_collate([sample]))[0], theirs)


def test_proposals_of_scores_that_onnxruntimes_sigmoid_takes_for_0(tmp_path):
    """Those of a net that is sure, as most are on few pictures; NMS goes by their order."""
    model, path = detector('faster_rcnn'), tmp_path / 'model.onnx'
    nn.init.constant_(model.rpn_head.rpn_cls.bias, -30)
    graph, (sample,) = DetectorGraph(model), samples((96, 128))
    files.write(graph, sample['inputs'][None], path, 'onnx', dict(task='detection', outputs=graph.outputs, size=None))
    with torch.no_grad():
        theirs = model.test_step(pseudo_collate([sample]))[0].clone()
    same(ExportedModel(*files.read(path, 'onnx')).test_step(pseudo_collate([sample]))[0], theirs)


def compiled(path, graph, info):
    """A program of `torch.export`, as docs/deploy.md compiles it."""
    packed = torch._inductor.aoti_compile_and_package(torch.export.load(path), package_path=str(path.with_stem('fast')))
    run = torch._inductor.aoti_load_package(packed)
    return ExportedModel(lambda image: tuple(out.numpy() for out in run(torch.from_numpy(image))),
                         dict(info, outputs=list(graph.outputs)))


@pytest.mark.slow
def test_a_picture_that_a_program_is_not_for(tmp_path):
    """What torch.export makes of GroupNorm is not for maps of one pixel; the file says so."""
    graph, path = DetectorGraph(detector('fcos')), tmp_path / 'model.pt2'
    files.write(graph, torch.zeros(2, 3, *LEAST, dtype=torch.uint8), path, 'pt2', dict(outputs=graph.outputs), True)
    with pytest.raises(PreflightError, match='takes no pictures of 64 x 48: torch.export made it for others .*Larger'):
        files.read(path, 'pt2')[0](np.zeros((1, 3, 48, 64), np.uint8))


@pytest.fixture(scope='module')
def mask_rcnn():
    return detector('mask_rcnn')


def test_pictures_of_a_batch_do_not_meet(mask_rcnn):
    graph = DetectorGraph(mask_rcnn)
    batch = torch.stack([sample['inputs'] for sample in samples((96, 128), (96, 128), (96, 128))])
    with torch.no_grad():
        together, alone = graph(batch), [graph(picture[None]) for picture in batch]
    for i, parts in enumerate(alone):
        for part, whole in zip(parts, together, strict=True):
            assert part.shape[1] == whole.shape[1] == 100
        scores, others = parts[2][0], together[2][i]
        torch.testing.assert_close(scores, others, rtol=0, atol=1e-4)


@pytest.mark.parametrize('size', [(800, 1333), (64, 40), (300, 500)])
def test_what_is_traced_for_any_size(size, mask_rcnn):
    sample, = samples(size)
    subject = SimpleNamespace(model=mask_rcnn, is_detector=True, classes=['a'], samples=[sample], pipeline=[],
                              cfg=SimpleNamespace(filename='a.py'))
    example = departure(subject, dynamic=True).example
    height, width = example.shape[2:]
    assert not height % 32
    assert not width % 32
    assert height >= LEAST[0]
    assert width > LEAST[1]
    assert torch.equal(example[0, :, :64, :40], sample['inputs'][:, :64, :40])


def test_an_opset_that_has_no_aligned_regions(mask_rcnn, tmp_path):
    """Of this torchvision only warns, and the file finds other boxes."""
    leaving = Departure(DetectorGraph(mask_rcnn), {}, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), True)
    with pytest.raises(UnsupportedModelError, match='MaskRCNN leaves from opset 16 on: --opset 15 cannot express it'):
        leaving.write(tmp_path / 'model.onnx', 'onnx', opset=15)


def test_nothing_found(mask_rcnn, tmp_path):
    model = detector('mask_rcnn', score_thr=1.0)
    graph, path = DetectorGraph(model), str(tmp_path / 'model.onnx')
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    files.write(graph, image, path, 'onnx', dict(outputs=graph.outputs))
    boxes, labels, scores, masks = files.read(path, 'onnx')[0](image.numpy())
    assert (labels == -1).all()
    assert (scores == -1).all()
    assert not boxes.any()
    assert masks.shape == (1, 100, 28, 28)


def test_half_precision_finds_nearly_the_same(mask_rcnn):
    graph, (sample,) = DetectorGraph(detector('mask_rcnn').half()), samples((96, 128))
    with torch.no_grad():
        half, full = graph(sample['inputs'][None]), DetectorGraph(mask_rcnn)(sample['inputs'][None])
    assert all(part.dtype in (torch.float32, torch.int64) for part in half)
    torch.testing.assert_close(half[2], full[2], rtol=0, atol=0.02)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(nms=dict(type='soft_nms', iou_threshold=0.5)),
     'MaskRCNN cannot be exported: Shared2FCBBoxHead has suppression by soft_nms, not nms.'),
    (dict(nms=dict(type='nms', iou_threshold=0.5, max_num=-1, score_threshold=0.3)),
     "MaskRCNN cannot be exported: Shared2FCBBoxHead has nms with {'score_threshold': 0.3}, of which nothing is "
     'known.'),
    ('cascade', 'CascadeRCNN with a CascadeRoIHead cannot be exported: boxes are known of heads that predict as '
           'StandardRoIHead does.'),
    ('panoptic', 'PanopticFPN cannot be exported: of detectors, those are known that predict as SingleStageDetector or '
                 'TwoStageDetector does.'),
])
def test_what_cannot_be_exported(change, message):
    model = detector(change) if isinstance(change, str) else detector('mask_rcnn', **change)
    with pytest.raises(UnsupportedModelError) as error:
        DetectorGraph(model)
    assert str(error.value) == message


def test_suppression_by_the_function_itself():
    """As pure Python configs name it."""
    model = detector('retinanet')
    model.bbox_head.test_cfg.nms.type = nms
    assert DetectorGraph(model)
