"""Schedules and averages made for another length of training are told in red, in a trial calmly; sound ones are not."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import CosineAnnealingLR
from mmengine.runner import EpochBasedTrainLoop
from small_runs import CLASSIFIER

from rkan_mm.apis import runner
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.schedules import check_schedules

ITERATIONS = ("""
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4))
""")
ODD = {
    'epochs where iterations count': (
        ITERATIONS + "param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[1, 2])\n",
        'param_scheduler[0] (MultiStepLR) counts epochs, and this training counts iterations'),
    'milestones behind the end': (
        "param_scheduler = [dict(type='MultiStepLR', milestones=[8, 11])]\n",
        'WARNING: param_scheduler is made for a longer training than this one of 4 epochs (12 iterations): MultiStepLR '
        'first steps after 8 epochs.'),
    'a schedule of twelve epochs': (
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),\n"
        "                   dict(type='MultiStepLR', milestones=[8, 11], end=12)]\n",
        ': LinearLR warms up for 500 iterations, MultiStepLR first steps after 8 epochs.'),
    'milestones as iterations': (
        "param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[2, 3])]\n",
        'has milestones=[2, 3] in iterations (by_epoch=False), all within the first of 4 epochs: are epochs meant?'),
    'a decay in iterations': (
        "param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=3, end=3)]\n",
        'ends after 3 iterations (by_epoch=False), within the first of 4 epochs: are epochs meant?'),
    'a warm-up without end': (
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500)]\n",
        'LinearLR warms up for 500 iterations.'),
    'a constant one': (
        "param_scheduler = [dict(type='ConstantLR', factor=0.1, by_epoch=False, end=500)]\n",
        'ConstantLR warms up for 500 iterations.'),
    'a plateau without a validation': (
        "val_cfg = val_dataloader = val_evaluator = None\n"
        "param_scheduler = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')\n",
        '(ReduceOnPlateauLR) waits for a validation, and there is none: its lr stays as it is.'),
    'averages that hardly move': (
        "custom_hooks = [dict(type='EMAHook')]\n",
        'averages, of which 99.8% are still the weights from before the training (momentum=0.0002, 12 updates)'),
    'a longer decay': (
        "param_scheduler = [dict(type='CosineAnnealingLR', T_max=9)]\n",
        'made for a longer training than this one of 4 epochs (12 iterations): CosineAnnealingLR takes 9 epochs.'),
    'a shorter cosine': (
        "param_scheduler = [dict(type='CosineAnnealingLR', T_max=2)]\n",
        'made for a shorter training than this one of 4 epochs (12 iterations): CosineAnnealingLR rises again after 2 '
        'epochs (T_max).'),
    'a shorter cosine of iterations': (
        "param_scheduler = [dict(type='CosineAnnealingLR', T_max=9, end=9, by_epoch=False)]\n",
        'made for a shorter training than this one of 4 epochs (12 iterations): CosineAnnealingLR leaves less than 5% '
        'of the lr after 9 iterations.'),
    'a shorter polynomial': (
        "param_scheduler = [dict(type='PolyLR', end=2)]\n", 'PolyLR leaves less than 5% of the lr after 2 epochs.'),
    'a shorter cycle': (
        "param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, total_steps=9, end=9, by_epoch=False)]\n",
        'OneCycleLR leaves less than 5% of the lr after 9 iterations.'),
    'shorter periods': (
        "param_scheduler = [dict(type='CosineRestartLR', periods=[2, 8], restart_weights=[1, 1], eta_min_ratio=0,\n"
        "                        by_epoch=False)]\n",
        'CosineRestartLR leaves less than 5% of the lr after 10 iterations.'),
    'the worst on a plateau': (
        "param_scheduler = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')\n",
        "param_scheduler[0] (ReduceOnPlateauLR): by rule='less' the worst accuracy/top1 is taken for the best. Write "
        "rule='greater'."),
    'a late beginning': (
        "param_scheduler = [dict(type='CosineAnnealingLR', begin=5, end=9, T_max=4)]\n",
        'CosineAnnealingLR begins after 5 epochs.'),
}
SOUND = {
    'a warm-up and milestones': """
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
                   dict(type='MultiStepLR', milestones=[3])]
""",
    'a warm-up of epochs, then a cosine': """
param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=1, convert_to_iter_based=True),
                   dict(type='CosineAnnealingLR', begin=1, end=4, T_max=3, convert_to_iter_based=True)]
""",
    'iterations': ITERATIONS + "param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[1, 2])\n",
    'a plateau': ITERATIONS + (
        "param_scheduler = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater')\n"),
    'the best of some iterations alone': ITERATIONS + """
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=-1, save_best='accuracy/top1')
param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[1, 2])
""",
    'a step before the first epoch': "param_scheduler = [dict(type='MultiStepLR', milestones=[0, 1])]\n",
    'a step at the beginning': "param_scheduler = [dict(type='MultiStepLR', milestones=[0])]\n",
    'averages that move': "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n",
    'averages that move at first': "custom_hooks = [dict(type='EMAHook', ema_type='MomentumAnnealingEMA')]\n",
    'averages from the second epoch on': "custom_hooks = [dict(type='EMAHook', begin_epoch=1)]\n",
    'a last part with a low lr': """
param_scheduler = [dict(type='CosineAnnealingLR', end=3, T_max=3, eta_min_ratio=0.05)]
""",
    'two cosines': """
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, end=9, T_max=9),
                   dict(type='CosineAnnealingLR', by_epoch=False, begin=9, end=12, T_max=3)]
""",
    'a cycle': "param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, total_steps=11, by_epoch=False)]\n",
    'a cycle as long as the training': "param_scheduler = [dict(type='OneCycleLR', eta_max=0.01)]\n",
    'none': '',
}


TRIALS = {
    'one epoch of twelve': ('max_epochs=1', '', 'than this one of 1 epoch (3 iterations): LinearLR warms up for 500 '
                            'iterations, MultiStepLR first steps after 8 epochs.'),
    'a few iterations': ('max_epochs=1', ITERATIONS, 'than this one of 4 iterations: LinearLR warms up for '
                         '500 iterations, MultiStepLR first steps after 8 iterations.'),
}


@pytest.fixture
def printed(small_data, tmp_path, capsys):
    def train(lines, length='max_epochs=4'):
        text = CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures')))
        (tmp_path / 'cls.py').write_text(text.replace('max_epochs=1', length) + lines)
        runner.train([str(tmp_path / 'cls.py'), '--work-dir', str(tmp_path / 'work')])
        return capsys.readouterr().out
    return train


@pytest.mark.parametrize('case', ODD)
def test_in_red(printed, case):
    lines, said = ODD[case]
    assert said in printed(lines)


@pytest.mark.parametrize('case', SOUND)
def test_nothing_is_said(printed, case):
    assert 'WARNING: ' not in printed(SOUND[case])


@pytest.mark.parametrize(('options', 'steps'), [
    ('total_steps=10, by_epoch=False', 'total_steps=10, and the training takes 12 iterations'),
    ('total_steps=2', 'total_steps=2, and the training takes 4 epochs'),
    ('total_steps=3, convert_to_iter_based=True', 'total_steps=9, and the training takes 12 iterations'),
])
def test_a_cycle_that_would_stop_the_training(printed, options, steps):
    with pytest.raises(PreflightError, match=rf'param_scheduler\[0\] \(OneCycleLR\) has {steps}: mmengine would stop'):
        printed(f"param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, {options})]\n")


@pytest.mark.parametrize('case', TRIALS)
def test_a_trial_is_told_calmly_in_one_line(printed, monkeypatch, case):
    length, loop, said = TRIALS[case]
    by_epoch = not loop
    lines, log = f"""
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
                   dict(type='MultiStepLR', by_epoch={by_epoch}, milestones=[8, 11], end=12)]
""", []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text, *args, **kwargs: log.append(str(text)))
    assert 'WARNING: ' not in printed(loop + lines, length)
    assert [text.partition('longer training ')[2] for text in log if 'param_scheduler is made' in text] == [said]


def test_each_optimizer_has_its_own_schedules(capsys):
    """A long one of another optimizer does not follow a short one."""
    def cosine(epochs):
        return CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), T_max=epochs, end=epochs)

    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    loop._max_epochs, loop._max_iters = 50, 500
    check_schedules(SimpleNamespace(train_loop=loop, val_loop=None,
                                    param_schedulers=dict(first=[cosine(25)], second=[cosine(50)])))
    assert 'first CosineAnnealingLR leaves less than 5% of the lr after 25 epochs.' in capsys.readouterr().out
