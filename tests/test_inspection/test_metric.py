"""Metrics on a part of a validation set, intervals of differences, and which predictions differ."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn
from torch.testing import assert_close

from rkan_mm.apis.runner import load_config
from rkan_mm.datasets.shapes import make_shapes
from rkan_mm.inspection import Recorder, changes
from rkan_mm.inspection.comparison import overlaps, plain_boxes
from rkan_mm.inspection.metric import Metric
from rkan_mm.inspection.subject import Subject
from rkan_mm.inspection.worth import parts, variants
from rkan_mm.models import KANLinear, RKANBlock, RKANet, SharedKANConv2d
from rkan_mm.preflight import PreflightError


@pytest.fixture(scope='module')
def subject(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp('shapes'), 'configs/mask-rcnn_rkanet18_fpn_shapes.py'
    make_shapes(folder / 'shapes', num_train=1, num_val=6, size=64)
    cfg = load_config(config, dict(data_root=f'{folder}/shapes/'))
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'net.pth')
    return Subject(cfg, str(folder / 'net.pth'), num_images=2, device='cpu')


def perfect(subject, metric) -> list[BaseDataElement]:
    """Ground truth as predictions."""
    found = []
    for place in metric.chosen:
        sample = subject.dataset[place]['data_samples']
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes.tensor.clone(), labels=truth.labels.clone(), scores=torch.ones(len(truth)),
            masks=truth.masks.to_tensor(torch.bool, 'cpu'))
        found.append(sample)
    return found


def test_coco_counts_only_what_is_predicted(subject, monkeypatch):
    monkeypatch.setattr(subject, 'cfg', copy.deepcopy(subject.cfg))
    subject.cfg.val_evaluator.classwise = True
    metric = Metric(subject, 3)
    assert metric.chosen == [0, 2, 5]
    results = perfect(subject, metric)
    monkeypatch.setattr(Subject, 'predict', lambda self, samples, *args: iter(copy.deepcopy(results[i]) for i in [
        [r.img_id for r in results].index(sample['data_samples'].img_id) for sample in samples]))
    metrics, predictions = metric()
    assert metrics['coco/bbox_mAP'] == metrics['coco/segm_mAP'] == 1.0  # all six images would give less
    assert next(iter(metrics)) == 'coco/bbox_mAP'  # mmdet gives those of the classes first
    assert any(name.endswith('_precision') for name in metrics)
    assert len(predictions) == 3


def test_a_metric_that_counts_all_of_its_file(subject):
    """In another form than COCO's, which cannot be cut down."""
    other = copy.copy(subject)
    other.cfg = copy.deepcopy(subject.cfg)
    other.cfg.val_evaluator = dict(type='CrowdHumanMetric', ann_file='val.odgt')
    with pytest.raises(PreflightError, match="CrowdHumanMetric counts all objects of 'val.odgt', .*--eval-images all"):
        Metric(other, 3)
    assert Metric(other, None).num_images == 6


def test_metrics_that_stand_in_an_evaluator(subject):
    other = copy.copy(subject)
    other.cfg = copy.deepcopy(subject.cfg)
    metrics = [other.cfg.val_evaluator]
    other.cfg.val_evaluator = dict(type='Evaluator', metrics=metrics)
    assert [len(Metric(other, 3).truth['images']), Metric(other, 3).configs[0]['type']] == [3, 'CocoMetric']
    other.cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['shapes'])
    with pytest.raises(PreflightError, match='MultiDatasetsEvaluator has rules of its own .*one data set'):
        Metric(other, 3)


def test_a_json_of_other_images_under_the_same_numbers(subject):
    """As where only the data set was turned to another split; it was an AP of 0, without a word."""
    other, truth = copy.copy(subject), Path(subject.cfg.val_evaluator.ann_file)
    other.cfg = copy.deepcopy(subject.cfg)
    content = json.loads(truth.read_text())
    for image in content['images']:
        image['file_name'] = f'other-{image["file_name"]}'
    other.cfg.val_evaluator.ann_file = str(truth.with_name('other.json'))
    Path(other.cfg.val_evaluator.ann_file).write_text(json.dumps(content))
    with pytest.raises(PreflightError, match='CocoMetric of the validation has other annotations than its data set: 3'):
        Metric(other, 3)
    other.cfg.preflight = dict(evaluator=False)
    assert Metric(other, 3).num_images == 3


def test_a_json_that_is_read_by_a_backend(subject):
    class Elsewhere(LocalBackend):
        def get_text(self, filepath, encoding='utf-8'):
            return super().get_text(str(filepath).removeprefix('elsewhere:'), encoding)

    register_backend('elsewhere', Elsewhere, force=True)
    other = copy.copy(subject)
    other.cfg = copy.deepcopy(subject.cfg)
    other.cfg.val_evaluator.update(ann_file=f'elsewhere:{subject.cfg.val_evaluator.ann_file}',
                                   backend_args=dict(backend='elsewhere'))
    metric = Metric(other, 3)
    assert len(metric.truth['images']) == 3
    assert 'backend_args' not in metric.configs[0]


def test_a_checkpoint_of_classes_in_another_order(subject, tmp_path):
    content = torch.load(subject.checkpoint)
    names = subject.dataset.metainfo['classes']
    torch.save(content | dict(meta=dict(dataset_meta=dict(classes=names[::-1]))), tmp_path / 'net.pth')
    with pytest.raises(PreflightError, match='the checkpoint has the classes ring, .*they differ from number 0 on'):
        Subject(subject.cfg, str(tmp_path / 'net.pth'), device='cpu')
    cfg = copy.deepcopy(subject.cfg)
    cfg.preflight = dict(classes=False)
    assert Subject(cfg, str(tmp_path / 'net.pth'), device='cpu').classes == names


def test_labels_are_numbered_as_the_json_lists_categories(subject, monkeypatch):
    """Whatever the config calls them, where that is allowed (preflight.classes=False)."""
    metric = Metric(subject, None)
    truth = perfect(subject, metric)
    names = subject.dataset.metainfo['classes']
    monkeypatch.setitem(subject.dataset._metainfo, 'classes', names[::-1])
    draws = np.arange(6)[None]
    assert metric._resampled_ap(truth, draws).tolist() == [1.0]


def test_intervals_of_ap(subject):
    metric = Metric(subject, None)
    truth = perfect(subject, metric)
    worse = copy.deepcopy(truth)
    for result in worse[:5]:
        result.pred_instances = result.pred_instances[:0]
    same, interval = metric.intervals([truth, truth])[1], metric.intervals([truth, worse])[1]
    assert same == (0.0, 0.0)
    assert interval[0] < interval[1] < 0
    assert metric._resampled([truth])[0] == pytest.approx(np.ones(200))
    empty = copy.deepcopy(truth)
    for result in empty:
        result.pred_instances = result.pred_instances[:0]
    assert (metric._resampled([empty]) == 0).all()


def test_intervals_are_of_the_metric_that_is_shown(subject):
    metric = Metric(subject, None)
    truth = perfect(subject, metric)
    for name, known in {'coco/bbox_mAP': True, 'coco/bbox_mAP_50': False, 'coco/segm_mAP': False}.items():
        assert (metric.intervals([truth, truth], name)[1] is not None) == known
    wide = copy.deepcopy(truth)
    for result in wide:
        boxes = result.pred_instances.bboxes
        boxes[:, 2] += 0.3 * (boxes[:, 2] - boxes[:, 0])
    assert metric._resampled([wide])[0].max() < 1  # an IoU of 0.77
    metric.configs[0]['iou_thrs'] = [0.5]
    assert metric._resampled([wide])[0] == pytest.approx(np.ones(200))


def test_resampled_ap_is_cocos(subject, monkeypatch):
    """Drawn once each, the images give the AP of pycocotools."""
    metric = Metric(subject, None)
    noisy = perfect(subject, metric)
    for i, result in enumerate(noisy):
        result.pred_instances.bboxes += 3 * torch.randn(result.pred_instances.bboxes.shape)
        result.pred_instances.scores = torch.rand(len(result.pred_instances))
        if i % 2:
            result.pred_instances.labels = (result.pred_instances.labels + 1) % 5
    every = np.arange(metric.num_images)[None]
    found = metric._resampled_ap(noisy, every)[0]
    monkeypatch.setattr(Subject, 'predict', lambda self, samples, *args: iter(copy.deepcopy(noisy[i]) for i in [
        [r.img_id for r in noisy].index(sample['data_samples'].img_id) for sample in samples]))
    assert found == pytest.approx(metric()[0]['coco/bbox_mAP'], abs=6e-4)  # which is rounded


def test_top1_intervals():
    class Stub(Metric):
        def __init__(self):
            self.num_images, self.truth = 40, None

    def results(right):
        return [BaseDataElement(gt_label=torch.tensor([1]), pred_label=torch.tensor([int(i < right)]))
                for i in range(40)]

    low, high = Stub().intervals([results(30), results(10)])[1]
    assert low < -50 < high < 0
    assert Stub().intervals([results(30), results(30)])[1] == (0.0, 0.0)


def instances(*boxes) -> BaseDataElement:
    return BaseDataElement(pred_instances=InstanceData(
        bboxes=torch.tensor([box[:4] for box in boxes], dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor([box[4] for box in boxes]), labels=torch.tensor([box[5] for box in boxes]).long()))


def test_changes():
    before = instances((0, 0, 10, 10, 0.9, 1), (20, 20, 30, 30, 0.8, 2), (50, 50, 60, 60, 0.5, 1), (0, 0, 9, 9, 0.1, 3))
    after = instances((1, 0, 10, 10, 0.7, 1), (20, 20, 30, 30, 0.6, 3), (80, 80, 90, 90, 0.4, 0))
    found = changes(before, after, 0.3)
    assert (found.kept, found.lost, found.new) == ([(0, 0)], [1, 2], [1, 2])
    assert len(found) == 4
    nothing = changes(before, instances(), 0.3)
    assert (nothing.kept, nothing.lost, nothing.new) == ([], [0, 1, 2], [])
    assert len(changes(instances(), instances())) == 0


def test_changes_of_classes():
    one, other = (BaseDataElement(pred_label=torch.tensor([label])) for label in (1, 2))
    assert len(changes(one, one)) == 0
    assert len(changes(one, other)) == 2


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = RKANet(backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8, init_cfg=None),
                          stages=('layer3', 'layer4'))
        self.block, self.conv, self.fc = RKANBlock(64, 8), SharedKANConv2d(1), KANLinear(8, 2)

    def forward(self, x):
        return self.fc(self.conv(self.block(self.net(x)[-1])).mean((2, 3)))


def test_parts_and_their_variants():
    model = Mixed().eval()
    found = parts(model)
    assert [part.title for part in found] == ['layer3', 'layer4', 'block', 'KAN layers']
    assert list(found[1].layers) == ['net.bridges.layer4.block.kan1', 'net.bridges.layer4.block.kan2']
    assert list(found[3].layers) == ['conv', 'fc']
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), Recorder(model) as recorder:
        expected = model(x)
    seen = {}
    with torch.no_grad():
        for run, context in variants(model, recorder):
            with context:
                seen[run.name, run.part] = model(x)
        assert model(x).equal(expected)
    assert len(seen) == 1 + 2 * 4 + 2
    assert seen['as trained', ''].equal(expected)
    outputs = list(seen.values())
    assert all(not outputs[i].equal(outputs[j]) for i in range(len(outputs)) for j in range(i))


def test_subjects_are_checked(subject, tmp_path):
    from rkan_mm.preflight import PreflightError
    weights = {name: value for name, value in subject.model.state_dict().items() if 'kan1' not in name}
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    with pytest.raises(PreflightError, match=r"a.pth'.*kan1"):
        Subject(subject.cfg, str(tmp_path / 'a.pth'), device='cpu')
    Subject(subject.cfg, str(tmp_path / 'a.pth'), device='cpu', allow_partial=True)
    with pytest.raises(PreflightError, match=r"Device 'xpu:7' cannot be used: "):
        Subject(subject.cfg, subject.checkpoint, device='xpu:7')


def test_boxes_of_other_kinds():
    turned = InstanceData(bboxes=torch.tensor([[10.0, 20, 8, 4, torch.pi / 2], [0, 0, 2, 2, torch.pi / 4]]))
    half = 2**0.5
    assert_close(plain_boxes(turned), torch.tensor([[8.0, 16, 12, 24], [-half, -half, half, half]]))
    masks = torch.zeros(2, 9, 9, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    found = InstanceData(bboxes=torch.zeros(2, 4), masks=masks)  # as SOLO gives them
    assert_close(plain_boxes(found), torch.tensor([[3.0, 2, 7, 4], [0, 0, 0, 0]]))
    assert (overlaps(torch.zeros(1, 4), torch.zeros(1, 4)) == 0).all()
    same = instances((0, 0, 0, 0, 0.9, 1))
    assert len(changes(same, same)) == 2  # boxes without an area are not found again


def test_several_labels():
    from rkan_mm.visualization import draw_changes
    sample = BaseDataElement(pred_label=torch.tensor([0, 2]), pred_score=torch.tensor([0.6, 0.1, 0.9]),
                             gt_label=torch.tensor([0, 1]))

    class Stub(Metric):
        def __init__(self):
            self.num_images, self.truth = 1, None

    assert Stub().intervals([[sample], [sample]]) == [None, None]  # top-1 is not what is measured there
    figure = draw_changes(np.zeros((8, 8, 3), np.uint8), {'a': sample, 'b': sample}, ('x', 'y', 'z'))
    assert figure.axes[0].get_title() == 'a: z 0.90'
