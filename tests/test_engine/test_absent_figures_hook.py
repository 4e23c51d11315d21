"""A validation without a figure shows none, rather than that of the validation before."""

import json
import math

import pytest
import torch
from mmengine.registry import LOOPS
from mmengine.runner import ValLoop

from rkan_mm.engine import allow_mmengine_globals
from rkan_mm.engine.absent_figures_hook import VALIDATED_AFTER

PLATEAU = """
param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater', patience=0, factor=0.5)]
"""
STOPPING = "custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience={})]\n"
BEST = "default_hooks = dict(checkpoint=dict(type='CheckpointHook', save_best='{}'))\n"


@pytest.mark.parametrize(('figures', 'best', 'best_epoch'), [
    ([10.0, 30.0, None], 30.0, 2), ([None, 10.0, 30.0], 30.0, 3), ([None, None, 20.0], 20.0, 3),
    ([20.0, None, 10.0], 20.0, 1), ([10.0, 20.0, 30.0], 30.0, 3)])
def test_the_summary_counts_all_validations(train_to, figures, best, best_epoch):
    _, found = train_to(figures)
    assert [None if math.isnan(value) else value for value in found['curve']] == figures
    assert (found['best'], found['best_epoch']) == (best, best_epoch)
    assert found['last'] == figures[-1] or (figures[-1] is None and math.isnan(found['last']))


def test_the_log_shows_no_figure_of_the_validation_before(train_to, tmp_path):
    train_to([10.0, None])
    lines = next((tmp_path / 'work').glob('*/*.log')).read_text().splitlines()
    shown = {line.partition('Epoch(val) ')[2][:3]: line for line in lines if 'Epoch(val)' in line}
    assert 'accuracy/top1: 10.0000' in shown['[1]']
    assert 'accuracy/top1: nan' in shown['[2]']
    assert 'figures' not in shown['[1]']
    assert 'validated' not in shown['[1]']
    assert any('WARNING - This validation gave no accuracy/top1, as where nothing is found' in line for line in lines)


def test_a_schedule_that_waits_for_a_figure_goes_on_without(train_to):
    done, _ = train_to([None, 10.0, None], PLATEAU)
    assert done.epoch == 3
    assert done.optim_wrapper.param_groups[0]['lr'] < 0.01


def test_such_a_schedule_ends_no_run_that_is_stopped_early_by_the_figure(train_to):
    done, _ = train_to([None, 10.0, None, 20.0], PLATEAU + STOPPING.format(3))
    assert done.epoch == 4


@pytest.mark.parametrize('best', ['accuracy/top1', 'auto'])
def test_the_best_checkpoint_is_that_of_another_validation(train_to, tmp_path, best):
    done, _ = train_to([10.0, None, 5.0], BEST.format(best))
    assert done.epoch == 3
    assert [path.name for path in (tmp_path / 'work').glob('best_*')] == ['best_accuracy_top1_epoch_1.pth']


@pytest.mark.parametrize('best', ['accuracy/top1', 'auto'])
def test_no_best_checkpoint_of_validations_that_give_nothing(train_to, tmp_path, best):
    done, _ = train_to([None, None], BEST.format(best))
    assert done.epoch == 2
    assert not list((tmp_path / 'work').glob('best_*'))


@pytest.mark.parametrize(('best', 'prefix', 'said'), [
    ('mine', 'accuracy', 'save_best keeps no checkpoint of this validation: it gave no mine, but accuracy/top1.'),
    ('auto', 'mine', "save_best='auto' keeps no best checkpoint: Cannot infer the rule for key mine/")])
def test_save_best_by_a_figure_that_never_comes_stops_no_training(train_to, tmp_path, best, prefix, said):
    judged = BEST.format(best).replace('save_best', "rule='greater', save_best" if best == 'mine' else 'save_best')
    done, _ = train_to([10.0, 20.0], judged + f"""
val_evaluator = dict(type='Accuracy', topk=(1,), prefix={prefix!r}, collect_device='cpu')
preflight = dict(trial=False)
""")
    assert done.epoch == 2
    assert said in next((tmp_path / 'work').glob('*/*.log')).read_text()


def test_the_epoch_of_the_best_figure(train_to, tmp_path):
    _, found = train_to([10.0, 30.0, 20.0], '', '--cfg-options', 'train_cfg.val_interval=2', epochs=6)
    assert (found['best'], found['best_epoch']) == (30.0, 4)
    assert json.loads((tmp_path / 'work/summary.json').read_text())['validated_after'] == [2, 4, 6]


def test_going_on_from_a_checkpoint_of_before(train_to, tmp_path):
    """What mmengine put into its lines of validations has another name since."""
    train_to([10.0])
    path = tmp_path / 'work/epoch_1.pth'
    allow_mmengine_globals()
    content = torch.load(path, weights_only=True)
    info = content['message_hub']['runtime_info']
    info['validated_after'] = info.pop(VALIDATED_AFTER)
    torch.save(content, path)
    train_to([20.0, 30.0], '', '--resume', epochs=3)
    assert json.loads((tmp_path / 'work/summary.json').read_text())['validated_after'] == [1, 2, 3]
    assert 'validated' not in ''.join(line for log in (tmp_path / 'work').glob('*/*.log')
                                      for line in log.read_text().splitlines() if 'Epoch(val)' in line)


@pytest.mark.parametrize(('lines', 'best'), [
    (BEST.format('accuracy/top1').replace("save_best", "rule='less', save_best"), 10.0),
    (STOPPING.format(5).replace('patience', "rule='less', patience"), 10.0),
    (BEST.format('accuracy/top1'), 30.0),
])
def test_the_best_figure_is_what_the_config_calls_so(train_to, lines, best):
    assert train_to([20.0, 10.0, 30.0], lines)[1]['best'] == best


@LOOPS.register_module()
class ValidationInParts(ValLoop):
    """Of a user's own: the same pictures as two data sets in turn, with figures of two names."""

    def run(self):
        for metric in ('accuracy', 'again'):
            self.evaluator.metrics[0].prefix = metric
            super().run()


def test_a_validation_in_parts(train_to, tmp_path):
    lines = "val_cfg = dict(type='ValidationInParts')\npreflight = dict(trial=False)\n"
    train_to([1.0, 2.0, 3.0, 4.0], lines, epochs=2)
    found = json.loads((tmp_path / 'work/summary.json').read_text())
    assert {name: metric['curve'] for name, metric in found['metrics'].items()} == {
        'accuracy/top1': [1.0, 3.0], 'again/figure': [2.0, 4.0]}
    assert found['validated_after'] == [1, 2]
    assert 'This validation gave no' not in next((tmp_path / 'work').glob('*/*.log')).read_text()
