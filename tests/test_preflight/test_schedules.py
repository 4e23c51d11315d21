"""Schedules that a training does not come to, or gets through at once, are told in red; sound ones are not."""

import pytest
from small_runs import CLASSIFIER

from rkan_mm.apis import runner

ITERATIONS = "train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)\n"
ODD = {
    'epochs where iterations count': (
        ITERATIONS + "param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[1, 2])\n",
        'param_scheduler[0] (MultiStepLR) counts epochs, and this training counts iterations'),
    'milestones behind the end': (
        "param_scheduler = [dict(type='MultiStepLR', milestones=[8, 11])]\n",
        'has milestones=[8, 11], and the training has 4 epochs: its lr never falls'),
    'milestones as iterations': (
        "param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[2, 3])]\n",
        'has milestones=[2, 3] in iterations (by_epoch=False), all within the first of 4 epochs: are epochs meant?'),
    'a decay in iterations': (
        "param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, T_max=3, end=3)]\n",
        'ends after 3 iterations (by_epoch=False), within the first of 4 epochs: are epochs meant?'),
    'a warm-up without end': (
        "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500)]\n",
        '(LinearLR) is a warm-up of 500 iterations, and the training has 12: its lr is never reached.'),
    'a constant one': (
        "param_scheduler = [dict(type='ConstantLR', factor=0.1, by_epoch=False, end=500)]\n", 'is a warm-up of 500 it'),
    'a plateau without a validation': (
        "val_cfg = val_dataloader = val_evaluator = None\n"
        "param_scheduler = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')\n",
        '(ReduceOnPlateauLR) waits for a validation, and there is none: its lr stays as it is.'),
    'a late beginning': (
        "param_scheduler = [dict(type='CosineAnnealingLR', begin=5, end=9, T_max=4)]\n",
        'begins after 5 epochs, and the training has 4: it never does.'),
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
    'a plateau': ITERATIONS + "param_scheduler = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')\n",
    'a step before the first epoch': "param_scheduler = [dict(type='MultiStepLR', milestones=[0, 1])]\n",
    'a step at the beginning': "param_scheduler = [dict(type='MultiStepLR', milestones=[0])]\n",
    'none': '',
}


@pytest.fixture
def printed(small_data, tmp_path, capsys):
    def train(lines):
        text = CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures')))
        (tmp_path / 'cls.py').write_text(text.replace('max_epochs=1', 'max_epochs=4') + lines)
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
