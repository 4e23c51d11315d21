"""COCO AP: of pycocotools called by hand, of mmdet's CocoMetric, and of ours on faster-coco-eval."""

import builtins
import copy
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.evaluation.metrics import CocoMetric, coco_metric
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.preflight import PreflightError

NAMES = ('disc', 'rectangle', 'triangle', 'star', 'ring')
MAX_DETS = [100, 300, 1000]


@pytest.fixture(scope='module')
def truth(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 1, 12, size=128) / 'annotations/val.json'


def handmade_detections(truth) -> list[dict]:
    """As of a detector that moves boxes and masks, mistakes classes, sees things twice, and things that are not."""
    rng = np.random.default_rng(0)
    coco = COCO(str(truth))
    samples = []
    for image_id, image in coco.imgs.items():
        rows = []
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            x, y, w, h = annotation['bbox']
            mask = coco.annToMask(annotation).astype(bool)
            for _ in range(rng.integers(0, 3)):
                shift = rng.integers(-6, 7, 2)
                box = np.array([x, y, x + w, y + h]) + np.tile(shift, 2) + rng.normal(0, 2, 4)
                label = annotation['category_id'] - 1 if rng.random() < 0.8 else rng.integers(5)
                rows.append((box, rng.random(), label, np.roll(mask, shift[::-1], (0, 1))))
        box = rng.uniform(0, 60, 2)
        rows.append((np.r_[box, box + 20], rng.random(), rng.integers(5), np.eye(image['height'], image['width']) > 0))
        boxes, scores, labels, masks = (torch.tensor(np.array(part)) for part in zip(*rows, strict=True))
        found = InstanceData(bboxes=boxes.float(), scores=scores.float(), labels=labels, masks=masks)
        samples.append(dict(img_id=image_id, ori_shape=(image['height'], image['width']), pred_instances=found))
    return samples


@pytest.fixture
def run(truth, tmp_path, monkeypatch):
    """All 24 figures of a metric, unrounded; its result; and the prefix of what it has dumped."""
    def run(kind, **kwargs):
        figures = {}

        class Recorded(coco_metric.COCOeval):
            def summarize(self):
                super().summarize()
                figures[self.params.iouType] = self.stats

        prefix = tmp_path / 'found'
        metric = MMENGINE_METRICS.build(dict(type=kind, ann_file=str(truth), metric=['bbox', 'segm'],
                                             outfile_prefix=str(prefix), **kwargs))
        if kind == 'mmdet.CocoMetric':
            monkeypatch.setattr(coco_metric, 'COCOeval', Recorded)
        else:
            from rkan_mm.evaluation import faster_coco_metric
            Recorded.__bases__ = (faster_coco_metric.FasterCOCOeval,)
            monkeypatch.setattr(faster_coco_metric, 'FasterCOCOeval', Recorded)
        metric.dataset_meta = dict(classes=NAMES)
        samples = handmade_detections(truth)
        metric.process({}, samples)
        result = metric.evaluate(len(samples))
        monkeypatch.undo()
        return figures, result, prefix
    return run


def by_hand(truth, prefix, kind: str) -> np.ndarray:
    coco = COCO(str(truth))
    found = json.loads(prefix.with_suffix(f'.{kind}.json').read_text())
    if kind == 'segm':
        for detection in found:
            detection.pop('bbox')  # else its area would count
    evaluation = COCOeval(coco, coco.loadRes(found), kind)
    evaluation.params.maxDets = MAX_DETS
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def check(truth, figures, result, prefix):
    for kind in ('bbox', 'segm'):
        expected = by_hand(truth, prefix, kind)
        assert expected.shape == (12,)
        assert 0.05 < expected[0] < expected[1] < 0.9
        np.testing.assert_allclose(figures[kind], expected, rtol=0, atol=1e-6)
        names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
        np.testing.assert_allclose([result[f'coco/{kind}_{name}'] for name in names], expected[:6], atol=5.001e-4)


def test_mmdets_metric_is_pycocotools_by_hand(truth, run):
    check(truth, *run('mmdet.CocoMetric'))


def test_ap_of_each_class(truth, run):
    _, result, prefix = run('mmdet.CocoMetric', classwise=True)
    coco = COCO(str(truth))
    found = json.loads(prefix.with_suffix('.segm.json').read_text())
    for detection in found:
        detection.pop('bbox')
    evaluation = COCOeval(coco, coco.loadRes(found), 'segm')
    for number, name in enumerate(NAMES):
        evaluation.params.catIds = [number + 1]
        evaluation.params.maxDets = MAX_DETS
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert result[f'coco/{name}_precision'] == pytest.approx(evaluation.stats[0], abs=5.001e-4)


def test_faster_coco_eval_gives_the_same(truth, run):
    pytest.importorskip('faster_coco_eval')
    check(truth, *run('rkan_mm.FasterCocoMetric'))


def figures(kind, ann_file, samples, **kwargs) -> dict:
    metric = MMENGINE_METRICS.build(dict(type=kind, ann_file=str(ann_file), **kwargs))
    metric.dataset_meta = dict(classes=NAMES)
    metric.process({}, copy.deepcopy(samples))
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('kwargs', [
    dict(metric=['bbox', 'segm'], classwise=True), dict(metric='proposal'),
    dict(metric='bbox', proposal_nums=(100, 1, 10), metric_items=['mAP', 'AR@100', 'AR@300', 'AR@1000'])])
def test_ids_that_are_texts_and_numbers_of_proposals_in_any_order(truth, tmp_path, kwargs):
    pytest.importorskip('faster_coco_eval')
    content, samples, ann_file = json.loads(truth.read_text()), handmade_detections(truth), tmp_path / 'texts.json'
    for image in content['images']:
        image['id'] = f'image {image["id"]}'
    for annotation in content['annotations']:
        annotation.update(id=str(annotation['id']), image_id=f'image {annotation["image_id"]}')
    for sample in samples:
        sample['img_id'] = f'image {sample["img_id"]}'
    ann_file.write_text(json.dumps(content))
    expected = figures('mmdet.CocoMetric', ann_file, samples, **kwargs)
    assert figures('rkan_mm.FasterCocoMetric', ann_file, samples, **kwargs) == expected
    assert 0.1 < next(iter(expected.values())) < 0.9


def test_objects_without_area_have_no_size(truth, tmp_path):
    """Nor with pycocotools; faster-coco-eval itself takes all for small."""
    pytest.importorskip('faster_coco_eval')
    content, ann_file = json.loads(truth.read_text()), tmp_path / 'without.json'
    for annotation in content['annotations']:
        del annotation['area']
    ann_file.write_text(json.dumps(content))
    for kind in ('mmdet.CocoMetric', 'rkan_mm.FasterCocoMetric'):
        with pytest.raises(KeyError, match='area'):
            figures(kind, ann_file, handmade_detections(truth), outfile_prefix=str(tmp_path / 'found'))


def test_what_faster_coco_eval_is_asked(truth, run, monkeypatch):
    """In its place pycocotools under its names, so that this much is known where it is not installed."""
    asked = []

    class Dataset(COCO):
        def __init__(self, annotations=None):
            super().__init__()
            if annotations is not None:
                self.dataset = json.loads(json.dumps(annotations, default=lambda value: value.decode()))
                self.createIndex()

    class Evaluation(COCOeval):
        def __init__(self, *args):
            super().__init__(*args)
            asked.append(args[-1])

    monkeypatch.setitem(sys.modules, 'faster_coco_eval', SimpleNamespace(COCO=Dataset, COCOeval_faster=Evaluation))
    check(truth, *run('rkan_mm.FasterCocoMetric'))
    assert asked == ['bbox', 'segm']
    assert coco_metric.COCOeval is COCOeval  # mmdet's own metric is as before


def test_without_faster_coco_eval(truth, monkeypatch):
    actual = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == 'faster_coco_eval':
            raise ImportError(name)
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(PreflightError, match='needs the package faster-coco-eval: pip install faster-coco-eval'):
        MMENGINE_METRICS.build(dict(type='rkan_mm.FasterCocoMetric', ann_file=str(truth)))
    assert isinstance(MMENGINE_METRICS.build(dict(type='mmdet.CocoMetric', ann_file=str(truth))), CocoMetric)
