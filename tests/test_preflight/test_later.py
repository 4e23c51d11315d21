"""What hooks come to only later in a training."""

import pytest
from small_runs import CLASSIFIER, DETECTOR

from rkan_mm.preflight import PreflightError

CHECKPOINT = "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, {}))\n"
SWITCH = """
train_cfg['max_epochs'] = 2
custom_hooks = [dict(type='PipelineSwitchHook', switch_epoch={}, switch_pipeline=[{}])]
"""
REPEATED = """
train_dataloader['dataset'] = dict(type='RepeatDataset', times=1, dataset=train_dataloader['dataset'])
"""
RECIPE = """
custom_hooks = [dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=1, train_pipeline=[{}])])]
"""


MOSAIC = """
train_dataloader['dataset'] = dict(
    type='MultiImageMixDataset', dataset={{**train_dataloader['dataset'], 'pipeline': load}},
    pipeline=[dict(type='Mosaic', img_scale=(64, 64)), scale, dict(type='PackDetInputs')])
train_cfg['max_epochs'] = {}
"""
YOLOX = "custom_hooks = [dict(type='YOLOXModeSwitchHook', num_last_epochs={})]\n"
LOSS = """
train_cfg['max_epochs'] = 2
custom_hooks = [dict(type='SwitchRecipeHook', schedule=[dict(action_epoch={}, loss=dict(type={}))])]
"""
MIXED = """
custom_hooks = [dict(type='SwitchRecipeHook', schedule=[dict(
    action_epoch=1, batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8)]))])]
"""
SCORES = "model['data_preprocessor'] = dict(num_classes=3, to_onehot=True)\n"
SOFT = "model['head']['loss'] = dict(type='CrossEntropyLoss', use_soft=True)\n"
GIVEN = """
custom_imports = dict(imports=['own_scores'], allow_failed_imports=False)
train_dataloader['dataset']['pipeline'] = [pipeline[0], dict(type='OwnScores'), pipeline[1]]
"""
OWN_SCORES = """
from mmpretrain.registry import TRANSFORMS

@TRANSFORMS.register_module(force=True)
class OwnScores:
    def __call__(self, results):
        return results | dict(gt_score=[float(i == results['gt_label']) for i in range(3)])
"""
DRAWN = "default_hooks = dict(visualization=dict(type='VisualizationHook', enable=True))\n"


@pytest.mark.parametrize(('text', 'lines', 'message'), [
    (CLASSIFIER, CHECKPOINT.format('max_keep_ckpt=2'), 'no argument max_keep_ckpt, .*did you mean max_keep_ckpts'),
    (CLASSIFIER, CHECKPOINT.format("filename_tmpl='{epoch}.pth'"), "filename_tmpl='{epoch}.pth' would fail at"),
    (DETECTOR, CHECKPOINT.format("keep='best'"), 'no argument keep, and would fail at .*; it has interval, '),
    (DETECTOR, SWITCH.format(1, "*load, dict(type='PackDetInput')"),
     'PipelineSwitchHook: its pipeline, from epoch 2 on, .*preflight.trial=False.: .*did you mean PackDetInputs'),
    (DETECTOR, SWITCH.format(1, "dict(type='LoadAnnotations', with_bbox=True), scale"), 'from epoch 2 on, would fail'),
    (CLASSIFIER, RECIPE.format("dict(type='ResizeEdge', scale=8)"), 'SwitchRecipeHook: .*from epoch 1 on, .* No `img`'),
    (CLASSIFIER, LOSS.format(2, "'CrossEntropyLoss', use_soft=True"),
     'SwitchRecipeHook: its loss, from epoch 2 on, would fail .*preflight.trial=False.: RuntimeError: The size of'),
    (CLASSIFIER, LOSS.format(2, "'LabelSmoothLoss', label_smooth_val=0.1, num_classes=9"), 'has a num_classes of its '),
    (DETECTOR, YOLOX.format(15), 'YOLOXModeSwitchHook would stop the training before epoch 1: .*and CocoDataset '),
    (DETECTOR, MOSAIC.format(5) + REPEATED + YOLOX.format(2), 'before epoch 3: .* leave out Mosaic, RandomAffine, '
     'MixUp, and RepeatDataset cannot. Let MultiImageMixDataset be outermost'),
    (CLASSIFIER, DRAWN, "as Visualizer cannot draw for it: write visualizer=dict.type='UniversalVisualizer'"),
])
def test_a_failure_that_is_to_come(printed, text, lines, message):
    with pytest.raises(PreflightError, match=message):
        printed(text, lines)


@pytest.mark.parametrize(('text', 'lines', 'told'), [
    (CLASSIFIER, CHECKPOINT.format('max_keep_ckpts=2, save_begin=0'), False),
    (DETECTOR, SWITCH.format(1, "*load, scale, dict(type='PackDetInputs')"), False),
    (DETECTOR, SWITCH.format(2, "dict(type='Gone')"), False),
    (DETECTOR, SWITCH.format(1, "*load, scale, dict(type='PackDetInputs')") + REPEATED, True),
    (CLASSIFIER, RECIPE.format("*pipeline"), False),
    (CLASSIFIER, LOSS.format(3, "'CrossEntropyLoss', use_soft=True"), False),
    (CLASSIFIER, LOSS.format(2, "'LabelSmoothLoss', label_smooth_val=0.1"), False),
    (CLASSIFIER, SCORES + SOFT + LOSS.format(2, "'CrossEntropyLoss', use_soft=True, loss_weight=2.0"), False),
    (CLASSIFIER, DRAWN + "visualizer = dict(type='UniversalVisualizer')\n", False),
])
def test_what_trains(printed, text, lines, told):
    assert ('PipelineSwitchHook will change nothing' in printed(text, lines)) is told


@pytest.mark.parametrize(('last', 'told'), [(2, True), (1, False)])
def test_mosaic_in_no_epoch(printed, last, told):
    said = 'YOLOXModeSwitchHook leaves out Mosaic, RandomAffine, MixUp from the first epoch on: there are 3'
    assert (said in printed(DETECTOR, MOSAIC.format(3) + YOLOX.format(last))) is told


def test_a_missing_picture_is_no_matter_of_the_pipeline(printed, tmp_path):
    (tmp_path / 'list.txt').write_text('cat/gone.png 0\ncat/0.png 0\n')
    with pytest.raises(PreflightError, match='CustomDataset of the train: .*cat/gone.png is not there'):
        printed(CLASSIFIER, f"train_dataloader['dataset']['ann_file'] = '{tmp_path}/list.txt'"
                            + RECIPE.format('*pipeline'))


def test_soft_labels_of_the_data(printed, tmp_path, monkeypatch):
    (tmp_path / 'own_scores.py').write_text(OWN_SCORES)
    monkeypatch.syspath_prepend(tmp_path)
    lines = SOFT + MIXED.replace('action_epoch=1', "action_epoch=1, loss=dict(type='CrossEntropyLoss', use_soft=True)")
    assert 'will mix no pictures' not in printed(CLASSIFIER, GIVEN + lines)


@pytest.mark.parametrize(('lines', 'told'), [('', True), (SCORES + SOFT, False)])
def test_pictures_that_are_not_mixed(printed, lines, told):
    said = 'SwitchRecipeHook will mix no pictures from epoch 1 on: mmpretrain mixes scores alone'
    assert (said in printed(CLASSIFIER, lines + MIXED)) is told
