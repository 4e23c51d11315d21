"""A validation on pictures that chance has moved, or on one twice, and other figures that are not what they seem."""

import json
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from small_runs import CLASSIFIER, DETECTOR, write_run
from torch import nn

from rkan_mm.apis import runner
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.evaluators import _check_lines, _check_numbering
from rkan_mm.preflight.metric_settings import check_numpy
from rkan_mm.preflight.run_hook import check_heads

VAL = 'val_dataloader = dict(val_dataloader, dataset='
STEPS = VAL + """dict(val_dataloader['dataset'], pipeline=[
    load[0], scale, {}, dict(type='PackDetInputs', meta_keys=keys)]))
"""
NOTHING = "model['test_cfg'].update(score_thr=1.0)\n"
REFUSED = {
    'mirrored by chance': (STEPS.replace('{}', "dict(type='RandomFlip', prob=0.5)"),
                           'The pipeline of the validation has RandomFlip, and boxes are predicted where the objects'),
    'shifted within a wrapper': (
        STEPS.replace('{}', "dict(type='RandomShift', prob=0.5)") + VAL
        + "dict(type='ConcatDataset', datasets=[val_dataloader['dataset']]))\n", 'has RandomShift, and boxes are pred'),
    'mirrored by a choice': (
        STEPS.replace('{}', "dict(type='RandomApply', prob=0.5, transforms=[dict(type='RandomFlip', prob=1.0)])"),
        'has RandomFlip, and boxes are predicted'),
    'two numbers of proposals': (NOTHING + "val_evaluator.update(proposal_nums=(1, 10))\n",
                                 r"ValueError: proposal_nums=\(1, 10\), and COCO's summary is of three. To run"),
    'no AP by the numbers of proposals': (
        NOTHING + "val_evaluator.update(proposal_nums=(1, 10, 300))\n",
        "COCO's AP is of 100 boxes an image, and would be -1 with proposal_nums=.1, 10, 300.: let one be 100"),
    'a key that is not kept': (
        "val_dataloader['dataset']['pipeline'][2]['meta_keys'] = ('img_id', 'img_path', 'ori_shape', 'img_shape')\n",
        'scale_factor.* .PackDetInputs of its pipeline does not keep it: add it to meta_keys'),
    'one threshold': (NOTHING + "val_evaluator.update(iou_thrs=0.5)\n", "leave iou_thrs out: COCO's summary is of"),
    'proposals by the fast way': ("val_evaluator.update(metric='proposal_fast')\n",
                                  "mmdet's proposal_fast fails with numpy .*: take metric='proposal'"),
    "recall of VOC's metric": (STEPS.replace('{}', 'load[1]')
                               + "val_evaluator = dict(type='VOCMetric', metric='recall')\n",
                               "in VOCMetric, .*mmdet's recall fails with numpy .*: take metric='mAP'"),
    'a metric that lacks annotations': ("val_evaluator = dict(type='OpenImagesMetric')\n",
                                        "in OpenImagesMetric, .*KeyError: 'instances' .its pipeline loads no annot"),
    'a loop for teachers': ("val_cfg = dict(type='TeacherStudentValLoop')\n",
                            'is for a teacher and a student, and RetinaNet has none: leave type out of val_cfg'),
    'each picture twice': (VAL + "dict(type='RepeatDataset', times=2, dataset=val_dataloader['dataset']))\n",
                           'count the predictions of 4 images as those of 2, such as .*the data set is repeated, or'),
    'two sets of the same ids': (VAL + """dict(type='ConcatDataset', datasets=[val_dataloader['dataset'], dict(
    val_dataloader['dataset'], ann_file='annotations/train.json', data_prefix=dict(img='train'))]))
""", 'two have the same ids'),
    'a figure that is not asked for, with nothing found': (
        NOTHING + "val_evaluator.update(metric_items=['mAP_50'])\n"
        "default_hooks['checkpoint'].update(save_best='coco/bbox_mAP')\n",
        r'.save_best. waits for coco/bbox_mAP, and the validation gives coco/bbox_mAP_50'),
    'a figure that does not exist, with nothing found': (
        NOTHING + "val_evaluator.update(metric_items=['AP'])\n", 'metric_items are such as mAP, mAP_50'),
    'a figure, with predictions but written': (
        "val_evaluator.update(format_only=True, outfile_prefix='found')\n"
        "default_hooks['checkpoint'].update(save_best='coco/bbox_mAP')\n",
        r'.save_best. waits for coco/bbox_mAP, and the validation gives no figure .format_only.. To run'),
    'two metrics of one name': ('val_evaluator = [val_evaluator] * 2\n',
                                '2 metrics of the validation give coco/bbox_mAP, and mmengine stops at that when all'),
}
RED = {
    'colours by chance': (STEPS.replace('{}', "dict(type='PhotoMetricDistortion')"),
                          'The pipeline of the validation has PhotoMetricDistortion, which changes pictures by chance'),
    'a high score_thr': ("model['test_cfg'].update(score_thr=0.3)\n",
                         'model.test_cfg.score_thr=0.3 leaves out boxes that AP counts'),
    'the worst for the best': (
        "default_hooks['checkpoint'].update(save_best='coco/bbox_mAP', rule='less')\n",
        "ResumableCheckpointHook(save_best): by rule='less' the worst coco/bbox_mAP is taken for the best."),
    'a picture without objects': (
        "val_dataloader['dataset'].update(test_mode=False, filter_cfg=dict(filter_empty_gt=True))\n"
        "val_dataloader['dataset']['ann_file'] = val_evaluator['ann_file'] = '{empty}'\n",
        'CocoMetric of the validation judges 1 of the 2 images of its ann_file: its data set leaves out those without '
        'objects (by filter_cfg or indices)'),
    'the best of one class': (
        "val_evaluator.update(classwise=True)\ndefault_hooks['checkpoint'].update(save_best='auto', rule='greater')\n",
        "save_best='auto' keeps the weights that are best by the first figure of a validation, and with classwise=True "
        'that is coco/disc_precision, of one class alone: --cfg-options '
        'default_hooks.checkpoint.save_best=coco/bbox_mAP'),
    'stopping at the best': (
        "custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', rule='less')]\n",
        "EarlyStoppingHook(monitor): by rule='less' the worst coco/bbox_mAP is taken for the best."),
}
SOUND = {
    'two metrics of two names': "val_evaluator = [val_evaluator, dict(val_evaluator, prefix='again')]\n",
    'two metrics of other figures': """
val_evaluator = [dict(val_evaluator, metric_items=['mAP']), dict(val_evaluator, metric_items=['mAP_50'])]
""",
    'never mirrored': STEPS.replace('{}', "dict(type='RandomFlip', prob=0.0)"),
    'the best': "default_hooks['checkpoint'].update(save_best='coco/bbox_mAP', rule='greater')\n",
    'the best by the first figure': "default_hooks['checkpoint'].update(save_best='auto')\n",
    'the best of one class, by name': """
val_evaluator.update(classwise=True)
default_hooks['checkpoint'].update(save_best='coco/disc_precision', rule='greater')
""",
}


@pytest.mark.parametrize('change', ['another order', 'a category less'])
def test_a_json_that_numbers_labels_otherwise(train, small_data, tmp_path, change):
    content = json.loads((small_data / 'shapes/annotations/val.json').read_text())
    first = content['categories'][0]['id']
    if change == 'another order':
        content['categories'].reverse()
    else:
        content['categories'].pop(0)
        content['annotations'] = [each for each in content['annotations'] if each['category_id'] != first]
    (tmp_path / 'other.json').write_text(json.dumps(content))
    with pytest.raises(PreflightError, match='numbers labels as its ann_file does, .*, and CocoDataset as disc, rect'):
        train(f"val_evaluator = dict(val_evaluator, ann_file='{tmp_path}/other.json')\n")


@pytest.mark.parametrize('classwise', [True, False])
def test_ids_that_fall_where_columns_are_named_in_the_order_of_the_json(train, small_data, tmp_path, classwise):
    content = json.loads((small_data / 'shapes/annotations/val.json').read_text())
    for category in content['categories']:
        category['id'] = 100 - category['id']
    for annotation in content['annotations']:
        annotation['category_id'] = 100 - annotation['category_id']
    (tmp_path / 'other.json').write_text(json.dumps(content))
    lines = f"val_evaluator = dict(val_evaluator, ann_file='{tmp_path}/other.json', classwise={classwise})\n"
    if classwise:
        with pytest.raises(PreflightError, match='would give the figures of ring as those of disc: the ids of its'):
            train(lines)
        lines += 'preflight = dict(evaluator=False)\n'
    train(lines)


@pytest.fixture
def train(small_data, tmp_path):
    def run(lines):
        (tmp_path / 'det.py').write_text(DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))) + lines)
        return runner.train([str(tmp_path / 'det.py'), '--work-dir', str(tmp_path / 'work')])
    return run


@pytest.mark.parametrize('case', REFUSED)
def test_refused(train, case):
    lines, said = REFUSED[case]
    with pytest.raises(PreflightError, match=said) as message:
        train(lines)
    if 'preflight.evaluator' in message.value.args[0]:
        train(f'{lines}preflight = dict(evaluator=False)\n')


@pytest.mark.parametrize('case', RED)
def test_in_red(train, small_data, tmp_path, capsys, case):
    lines, said = RED[case]
    content = json.loads((small_data / 'shapes/annotations/val.json').read_text())
    of_one = content['images'][0]['id']
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] == of_one]
    (tmp_path / 'empty.json').write_text(json.dumps(content))
    train(lines.replace('{empty}', str(tmp_path / 'empty.json')))
    assert f'WARNING: {said}' in capsys.readouterr().out


@pytest.mark.parametrize('case', SOUND)
def test_nothing_is_said(train, capsys, case):
    train(SOUND[case])
    assert 'WARNING: ' not in capsys.readouterr().out


@pytest.mark.parametrize(('kind', 'fails'), [('float', True), ('float64', False)])
def test_an_lvis_that_a_new_numpy_does_not_run(tmp_path, monkeypatch, kind, fails):
    (tmp_path / 'lvis').mkdir()
    (tmp_path / 'lvis/__init__.py').touch()
    (tmp_path / 'lvis/eval.py').write_text(f'import numpy as np\n\n\ndef total(x):\n    return x.astype(np.{kind})\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ('lvis', 'lvis.eval'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ValueError, match='asks for np.float, which numpy .* has no more') if fails else nullcontext():
        check_numpy(type('LVISMetric', (), {})())
    for name in ('lvis', 'lvis.eval'):
        monkeypatch.delitem(sys.modules, name)


def test_weights_that_are_no_numbers(small_data, tmp_path, capsys):
    argv = write_run(tmp_path, 'cls', CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures'))))
    content = torch.load(argv[1])
    content['state_dict']['head.fc.bias'][0] = float('nan')
    torch.save(content, argv[1])
    runner.test([*argv, '--work-dir', str(tmp_path)])
    assert 'has NaN in 1 entries (head.fc.bias).' in capsys.readouterr().out


def test_classes_that_a_checkpoint_of_mm_2_names(small_data, tmp_path):
    argv = write_run(tmp_path, 'det', DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))))
    content = torch.load(argv[1])
    torch.save(dict(content, meta=dict(CLASSES=('ring', 'disc', 'rectangle', 'triangle', 'star'))), argv[1])
    with pytest.raises(PreflightError, match='the checkpoint has the classes ring, .*, the data of the test has disc'):
        runner.test([*argv, '--work-dir', str(tmp_path)])


def test_weights_of_another_width(train, tmp_path, capsys):
    wide = DETECTOR.replace('base_channels=4', 'base_channels=8').replace('[4, 8, 16, 32]', '[8, 16, 32, 64]')
    path = write_run(tmp_path, 'wide', wide)[1]
    train(f"load_from = '{path}'\n")
    assert re.search(r"WARNING: '.*wide.pth' is of other shapes than the model: \d+ entries do not fit",
                     capsys.readouterr().out)
    path = write_run(tmp_path, 'more', DETECTOR.replace('num_classes=5', 'num_classes=80'))[1]
    train(f"load_from = '{path}'\n")
    assert 'WARNING: ' not in capsys.readouterr().out


CLASSWISE = """
val_evaluator = [dict(type='SingleLabelMetric', average=None, num_classes=3), dict(type='Accuracy', topk=1)]
"""
MATRIX = "val_evaluator = [dict(type='ConfusionMatrix'), dict(type='Accuracy', topk=1)]\n"
BEST = "default_hooks = dict(checkpoint=dict(type='CheckpointHook', rule='greater', save_best='{}'))\n"
STOP = "custom_hooks = [dict(type='EarlyStoppingHook', rule='greater', monitor='{}')]\n"
EACH = 'single-label/f1-score_classwise'


@pytest.mark.parametrize(('lines', 'message'), [
    (CLASSWISE + BEST.format(EACH), rf'save_best. waits for {EACH}, and the validation gives accuracy/top1. Name one '
                                    rf'of these .{EACH} is a list'),
    (CLASSWISE + STOP.format(EACH), rf'EarlyStoppingHook.monitor. waits for {EACH}, and the validation gives accuracy'),
    (MATRIX + BEST.format('auto'), r'confusion_matrix/result is a Tensor'),
    (MATRIX + BEST.format('accuracy/top1'), None),
    ("val_evaluator = dict(type='Accuracy', topk=1)\n" + BEST.format('auto'), None),
])
def test_figures_that_are_no_numbers(printed, lines, message):
    """Of which mmengine cannot tell the best: it stopped at the first validation."""
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        printed(CLASSIFIER, lines)


class Mask2Former(nn.Module):
    """Heads as mmdet has them; the numbers of classes are all that counts here."""

    __module__ = 'mmdet.models'

    def __init__(self, head, fusion):
        super().__init__()
        self.panoptic_head, self.panoptic_fusion_head = nn.Identity(), nn.Identity()
        for part, (things, stuff) in ((self.panoptic_head, head), (self.panoptic_fusion_head, fusion)):
            part.num_things_classes, part.num_stuff_classes, part.num_classes = things, stuff, things + stuff


BOXES = dict(classes=('a', 'b'))
PANOPTIC = dict(classes=('a', 'b', 'c'), thing_classes=('a', 'b'), stuff_classes=('c',))


@pytest.mark.parametrize(('meta', 'head', 'fusion', 'message'), [
    (BOXES, (2, 0), (2, 0), None),
    (PANOPTIC, (2, 1), (2, 1), None),
    (BOXES, (2, 0), (80, 0), r'model.panoptic_fusion_head \(Identity\) has num_things_classes=80; .* has 2 \(a, b\). '
                             r'Set model.panoptic_fusion_head.num_things_classes=2'),
    (BOXES, (80, 0), (80, 0), r'model.panoptic_head .* model.panoptic_fusion_head'),
    (PANOPTIC, (2, 53), (2, 1), r'model.panoptic_head \(Identity\) has num_stuff_classes=53;'),
])
def test_heads_of_masks(meta, head, fusion, message):
    """By a fusion head of another number mmdet takes a class for another, and a query for another, in silence."""
    model, dataset = Mask2Former(head, fusion), SimpleNamespace(metainfo=Config(meta).to_dict())
    if message is None:
        return check_heads(model, dataset, 'train')
    with pytest.raises(PreflightError, match=message):
        check_heads(model, dataset, 'train')


@pytest.mark.parametrize(('names', 'message'), [
    (('a', 'b'), None), (('a', 'b', 'c'), None), (('b', 'a'), 'CocoMetric of the test numbers labels .* does, b, a')])
def test_instances_of_panoptic_data(names, message):
    """Their json may have the classes of things alone, as in mm's config of Mask2Former."""
    coco = SimpleNamespace(cats={i: dict(name=name) for i, name in enumerate(names)},
                           get_cat_ids=lambda cat_names: [*range(len(names))])
    dataset = SimpleNamespace(metainfo=PANOPTIC, cat_ids=[1, 2, 3])
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        _check_numbering(dataset, coco, 'CocoMetric', 'test')


@pytest.mark.parametrize(('names', 'shuffle', 'message'), [
    ('abc', False, None), ('abc', True, 'and a sampler mixes them'), ('ab', False, 'from number 3 on: give both'),
    ('acb', False, 'has other lines in its ann_file .3. than its data set has images .3., from number 2 on')])
def test_lines_of_crowds(tmp_path, names, shuffle, message):
    """Where there are fewer pictures, mmdet gives the figures of the first ones; where they are others, it stops."""
    (tmp_path / 'val.odgt').write_text(''.join(json.dumps(dict(ID=name)) + '\n' for name in 'abc'))
    metric = SimpleNamespace(ann_file=str(tmp_path / 'val.odgt'), backend_args=None)
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        _check_lines([dict(img_id=name) for name in names], metric, SimpleNamespace(shuffle=shuffle), 'test')
