"""What could not be written when the work is done is named before it; nothing is made by asking."""

import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.outputs import check_outputs


@METRICS.register_module()
class MetricOfOwn(BaseMetric):
    pass


COCO, VISUAL = dict(type='mmdet.CocoMetric'), dict(type='DetVisualizationHook', test_out_dir='{}/note/pictures')
REFUSED = {
    'a prefix below a file': (dict(val_evaluator=dict(COCO, outfile_prefix='{}/note/a')), 'Not a directory'),
    'one of several metrics': (dict(val_evaluator=[dict(type='VOCMetric'), dict(COCO, outfile_prefix='{}/note/b/a')]),
                               r'val_evaluator\[1\].outfile_prefix=.* \(Not a directory\)'),
    'metrics of an Evaluator': (dict(val_evaluator=dict(type='Evaluator', metrics=[
        dict(COCO, outfile_prefix='{}/note/a')])), r'val_evaluator.metrics\[0\].outfile_prefix'),
    'predictions into a folder': (dict(val_evaluator=[dict(type='DumpDetResults', out_file_path='{}/there.pkl')]),
                                  'it is a folder'),
    'a folder that nobody makes': (dict(val_evaluator=[dict(type='DumpODVGResults', outfile_path='{}/new/a.jsonl')]),
                                   "there is no folder '.*new'.: make it first"),
    'checkpoints below a file': (dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', out_dir='{}/note'))),
                                 'default_hooks.checkpoint.out_dir'),
    'a file where checkpoints would go': (dict(custom_hooks=[dict(type='LoggerHook', out_dir='{}')]),
                                          r'custom_hooks\[0\].out_dir'),
}
TAKEN = {
    'a new folder': dict(val_evaluator=dict(COCO, outfile_prefix='{}/new/below/a')),
    'new predictions': dict(val_evaluator=[dict(type='DumpDetResults', out_file_path='{}/new/a.pkl')]),
    'a bare name': dict(val_evaluator=dict(COCO, outfile_prefix='a')),
    'nothing': dict(val_evaluator=dict(COCO, outfile_prefix=None)),
    'elsewhere': dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', out_dir='s3://bucket/note'))),
    'by a backend': dict(default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', out_dir='{}/note', backend_args=dict(backend='petrel')))),
    'pictures of a test that does not come': dict(default_hooks=dict(visualization=dict(VISUAL, draw=True))),
    'nothing is drawn': dict(default_hooks=dict(visualization=VISUAL)),
    "the user's own": dict(val_evaluator=dict(type='MetricOfOwn', out_dir='{}/note')),
    'switched off': dict(val_evaluator=dict(COCO, outfile_prefix='{}/note/a'), preflight=dict(paths=False)),
}


def config(parts, folder):
    """A config whose paths lie in a folder with a file ``note``, one called as the work dir, and a folder."""
    (folder / 'note').write_text('')
    (folder / 'work').write_text('')
    (folder / 'there.pkl').mkdir()

    def filled(node):
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return node.format(folder) if isinstance(node, str) else node
    return Config(filled(dict(default_scope='mmdet', val_cfg={}, work_dir='{}/runs/work', **parts)))


@pytest.mark.parametrize('case', REFUSED)
def test_refused(tmp_path, case):
    parts, message = REFUSED[case]
    with pytest.raises(PreflightError, match=message):
        check_outputs(config(parts, tmp_path), training=True)


@pytest.mark.parametrize('case', TAKEN)
def test_taken(tmp_path, case):
    cfg = config(TAKEN[case], tmp_path)
    before = sorted(tmp_path.rglob('*'))
    check_outputs(cfg, training=True)
    assert sorted(tmp_path.rglob('*')) == before


def test_no_validation_no_metric(tmp_path):
    cfg = config(REFUSED['a prefix below a file'][0], tmp_path)
    check_outputs(cfg, training=False)
    cfg.val_cfg = None
    check_outputs(cfg, training=True)


def test_pictures_of_a_test(tmp_path):
    cfg = config(TAKEN['pictures of a test that does not come'], tmp_path)
    with pytest.raises(PreflightError, match='default_hooks.visualization.test_out_dir=.* .Not a directory'):
        check_outputs(cfg, training=False)
