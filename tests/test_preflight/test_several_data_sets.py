"""Data sets that are joined, and evaluators with a metric for each: what mmdet takes, and what goes wrong."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from small_runs import DETECTOR, write_run

from rkan_mm.apis import infer, runner
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.datasets import common
from rkan_mm.preflight.evaluators import _check_cities, _check_lvis_json
from rkan_mm.preflight.metric_settings import _check_cityscapes

JOINED = """
first = train_dataloader['dataset']
second = dict(first, metainfo=dict({metainfo}))
train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[first, second])
"""
EACH = """
first = test_dataloader['dataset']
second = dict(first, ann_file='annotations/train.json', data_prefix=dict(img='train'))
test_dataloader = dict(test_dataloader, dataset=dict(type='ConcatDataset', datasets=[first, second]))
test_evaluator = dict(type='MultiDatasetsEvaluator', dataset_prefixes=['val', 'train'], metrics=[
    dict(type='CocoMetric', ann_file=f'{data_root}/annotations/{split}.json') for split in ('val', 'train')])
"""


@pytest.fixture
def run(small_data, tmp_path):
    def write(lines):
        return write_run(tmp_path, 'detector', DETECTOR.replace("'shapes'", repr(str(small_data / 'shapes'))) + lines)
    return write


def test_a_checkpoint_of_data_sets_with_other_colours(run, small_data, tmp_path):
    """The metainfo in it is a list."""
    config, _ = run(JOINED.format(metainfo='classes=classes, palette=[(1, 2, 3)] * 5'))
    runner.train([config, '--work-dir', str(tmp_path / 'work'), '--no-validate'])
    checkpoint = str(tmp_path / 'work/epoch_1.pth')
    assert runner.test([config, checkpoint, '--work-dir', str(tmp_path / 'test')])
    runner.train([config, '--work-dir', str(tmp_path / 'work'), '--no-validate', '--resume', '--cfg-options',
                  'train_cfg.max_epochs=2'])
    infer.main([config, checkpoint, str(small_data / 'shapes/val'), '--out-dir', str(tmp_path / 'out')])
    assert json.loads((tmp_path / 'out/preds/000000.json').read_text())['labels']


def test_joined_data_sets_with_classes_in_another_order(run, tmp_path):
    names = 'classes=(classes[1], classes[0], *classes[2:])'
    config, _ = run(JOINED.format(metainfo=names))
    with pytest.raises(PreflightError, match='data set 0 of the train has the classes disc, .*, data set 1 of the trai'
                       'n has rectangle, disc, .*; they differ from number 0 on, and labels are numbers'):
        runner.train([config, '--work-dir', str(tmp_path), '--cfg-options', 'preflight.annotations=False'])


def test_a_metric_for_each_data_set(run, tmp_path):
    arguments = [*run(EACH), '--work-dir', str(tmp_path)]
    assert {'val/coco/bbox_mAP', 'train/coco/bbox_mAP'} <= set(runner.test(arguments))
    with pytest.raises(PreflightError, match='--out: MultiDatasetsEvaluator has one metric for each of its data sets'):
        runner.test([*arguments, '--out', str(tmp_path / 'out.pkl')])
    with pytest.raises(PreflightError, match='CocoMetric of the test has other annotations than its data set'):
        runner.test([*run(EACH.replace("('val', 'train')", "('train', 'val')")), '--work-dir', str(tmp_path)])


def test_what_several_data_sets_have_in_common():
    assert common(None) == {}
    assert common(dict(classes='ab')) == dict(classes='ab')
    assert common([dict(classes='ab', palette=1), dict(classes='ab', palette=2)]) == dict(classes='ab')
    assert common([dict(classes='ab'), {}]) == {}


LOOKED_FOR = dict(neg_category_ids=[], not_exhaustive_category_ids=[])
LVIS = {
    'of version 1': (dict(LOOKED_FOR, coco_url='http://images.cocodataset.org/val2017/7.jpg'), {}, None),
    'of version 0.5': (dict(LOOKED_FOR, file_name='COCO_val2014_7.jpg'), {}, None),
    'of COCO, to write alone': (dict(file_name='7.jpg'), dict(format_only=True), None),
    'of COCO': (dict(file_name='7.jpg'), {}, 'would stop when all is predicted: 1 of 1 images in its ann_file have'),
    'without frequencies': (dict(LOOKED_FOR, file_name='7.jpg'), dict(frequency=None),
                            '2 of 2 categories in its ann_file have no frequency. Write it, or take Coco'),
    'in another order': (dict(LOOKED_FOR, file_name='7.jpg'), dict(order=-1),
                         'of LVISMetric has the classes owl.*preflight.evaluator=False'),
    'of other images': (dict(LOOKED_FOR, file_name='8.jpg'), {}, 'other annotations than its data set: 1 of 1'),
}


@pytest.mark.parametrize('case', LVIS)
def test_a_json_that_lvis_judges_by(case):
    image, changes, message = LVIS[case]
    categories = [dict(name=name, **({} if 'frequency' in changes else dict(frequency='r'))) for name in ('cat', 'owl')]
    api = SimpleNamespace(imgs={7: image}, cats=dict(enumerate(categories[::changes.get('order', 1)])))
    with pytest.raises(PreflightError, match=message) if message else nullcontext():
        _check_lvis_json([dict(img_id=7, img_path='data/val2017/7.jpg')], ('cat', 'owl'), api, 'test',
                         changes.get('format_only', False))


def test_what_cityscapes_is_judged_by(tmp_path, monkeypatch):
    place = tmp_path / 'leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png'
    maps = tmp_path / 'gtFine/val/ulm/ulm_000000_000019_gtFine_instanceIds.png'
    with pytest.raises(PreflightError, match='1 maps of instances, and 1 are not there, such as .*_gtFine_instanceIds'):
        _check_cities([dict(img_path=str(place))], 'test')
    maps.parent.mkdir(parents=True)
    maps.touch()
    _check_cities([dict(img_path=str(place))], 'test')
    other = tmp_path / 'ulm.png'
    other.touch()
    with pytest.raises(PreflightError, match='take 1 of 2 pictures for their own maps of instances, such as .*ulm'):
        _check_cities([dict(img_path=str(place)), dict(img_path=str(other))], 'test')
    monkeypatch.setitem(sys.modules, 'cityscapesscripts.helpers.labels', SimpleNamespace(name2label=dict(car=1)))
    _check_cityscapes(SimpleNamespace(dataset_meta=dict(classes=('car',))))
    with pytest.raises(ValueError, match='Cityscapes has no class owl, and CityScapesMetric is for its own: take Coco'):
        _check_cityscapes(SimpleNamespace(dataset_meta=dict(classes=('car', 'owl'))))
