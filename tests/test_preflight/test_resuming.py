"""What mmengine resumes is resumed; what then begins anew, or of the config changes nothing, is told in red."""

import re

import pytest
import torch
from mmengine.config import Config
from small_runs import CLASSIFIER

from rkan_mm.apis import runner
from rkan_mm.preflight import PreflightError
from rkan_mm.preflight.resuming import check_resumable

META = dict(epoch=1, iter=3)
SCHEDULE = "param_scheduler = [dict(type='MultiStepLR', milestones=[1], gamma=0.5)]\n"


@pytest.fixture
def train(small_data, tmp_path, capsys):
    """Train the small classifier with a step of its lr; returns the run and what was printed."""
    def run(epochs, *flags, text=SCHEDULE):
        (tmp_path / 'cls.py').write_text(
            CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures'))) + text)
        done = runner.train([str(tmp_path / 'cls.py'), '--work-dir', str(tmp_path / 'work'), *flags, '--cfg-options',
                             f'train_cfg.max_epochs={epochs}'])
        return done, capsys.readouterr().out
    run(2)
    return run


def without(path, *names):
    content = torch.load(path, weights_only=False)
    torch.save({name: value for name, value in content.items() if name not in names}, path)
    return str(path)


def test_a_checkpoint_without_an_optimizer(train, tmp_path):
    """As CheckpointHook(save_optimizer=False) writes it; mmengine's Runner takes it."""
    done, printed = train(2, '--resume', without(tmp_path / 'work/epoch_1.pth', 'optimizer'))
    assert (done.epoch, done.iter) == (2, 6)
    assert 'the checkpoint has no state of an optimizer, which begins anew: with the lr of the config' in printed
    assert done.optim_wrapper.param_groups[0]['lr'] == 0.01  # the step at epoch 1 is not made up for


def test_a_checkpoint_without_schedules(train, tmp_path):
    done, printed = train(2, '--resume', without(tmp_path / 'work/epoch_1.pth', 'param_schedulers'))
    assert done.epoch == 2
    assert 'the checkpoint has no state of the param_scheduler, which begins anew' in printed


BUFFERS = {  # what is done to the weights of a checkpoint, and what is told
    'one less': (lambda weights: weights.pop('backbone.bn1.running_mean'),
                 'buffers of the model are not so in {path} and begin anew: backbone.bn1.running_mean.'),
    'another size': (lambda weights: weights.update({'backbone.bn1.running_var': torch.ones(7)}),
                     'begin anew: backbone.bn1.running_var (7,), here (4,).'),
    'one more': (lambda weights: weights.update({'backbone.positions': torch.arange(3)}),
                 'buffers in {path} have no place in the model and are left out: backbone.positions.'),
}
OTHERS = {  # the same, what the checkpoint lacks besides, and what differs
    'a weight less': (lambda weights: weights.pop('backbone.bn1.weight'), [], 'backbone.bn1.weight'),
    'a weight of another size': (lambda weights: weights.update({'head.fc.bias': torch.ones(4)}), [],
                                 'head.fc.bias (4,), here (3,)'),
    'one more, whatever it is': (lambda weights: weights.update({'head.fc2.bias': torch.ones(3)}), ['optimizer'],
                                 'head.fc2.bias'),
}


def with_weights(path, change):
    content = torch.load(path, weights_only=False)
    change(content['state_dict'])
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize('case', BUFFERS)
def test_a_model_with_other_buffers(train, tmp_path, case):
    change, said = BUFFERS[case]
    path = with_weights(tmp_path / 'work/epoch_1.pth', change)
    done, printed = train(2, '--resume', path)
    assert done.epoch == 2
    assert said.format(path=repr(path)) in printed


@pytest.mark.parametrize('case', OTHERS)
def test_a_model_with_other_weights(train, tmp_path, case):
    change, lacks, said = OTHERS[case]
    path = without(with_weights(tmp_path / 'work/epoch_1.pth', change), *lacks)
    with pytest.raises(PreflightError, match=re.escape(f'{path!r} is of another model; they differ in {said}. To beg')):
        train(2, '--resume', path)


def test_a_model_with_other_arguments(train):
    """Whose weights fit all the same; others of the training, such as frozen stages, may change."""
    _, printed = train(3, '--resume', text=SCHEDULE + "model['backbone'].update(avg_down=False, frozen_stages=1)\n")
    assert 'WARNING: ' not in printed
    _, printed = train(4, '--resume', text=SCHEDULE + "model['backbone'].update(style='caffe')\n")
    assert ('WARNING: --resume: The checkpoint was trained with model.backbone.style=pytorch (here caffe). Its weights '
            'fit, but mean something else.') in printed


@pytest.mark.parametrize(('line', 'said'), [
    ("train_dataloader['batch_size'] = 3\n", 'train_dataloader.batch_size=2, here it is 3'),
    ("optim_wrapper['accumulative_counts'] = 2\n", 'optim_wrapper.accumulative_counts=1, here it is 2'),
])
def test_steps_by_other_numbers_of_pictures(train, line, said):
    _, printed = train(3, '--resume', text=SCHEDULE + line)
    assert f'WARNING: --resume: the checkpoint comes from {said}: iterations, and schedules that' in printed


def test_a_changed_lr_of_several_groups(train, tmp_path):
    text = SCHEDULE + "optim_wrapper.update(paramwise_cfg=dict(bias_lr_mult=1))\n"
    train(2, text=text)
    _, printed = train(3, '--resume', text=f"{text}optim_wrapper['optimizer'].update(lr=0.5)\n")
    assert '--resume goes on with the lr of the checkpoint, 0.01; that of the config, 0.5, changes nothing.' in printed


@pytest.mark.parametrize(('text', 'said'), [
    (SCHEDULE, None),
    (SCHEDULE.replace('[1]', '[1, 2]').replace('0.5', '0.3'),
     'param_scheduler[0] (MultiStepLR) goes on with end=2, milestones=[1], gamma=0.5 of the checkpoint; '
     '3, [1, 2], 0.3 of the config changes nothing.'),
    ("param_scheduler = [dict(type='MultiStepLR', milestones=[1], gamma=0.5),\n"
     "                   dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2)]\n",
     'the config has 2 schedules in param_scheduler, the checkpoint 1;'),
])
def test_schedules_are_those_of_the_checkpoint(train, text, said):
    done, printed = train(3, '--resume', text=text)
    assert done.epoch == 3
    assert said in printed if said else 'WARNING: ' not in printed, printed


@pytest.mark.parametrize(('content', 'flexible', 'message'), [
    (dict(meta=META, message_hub={}), False, None),
    (dict(meta=META, message_hub={}, optimizer={}, param_schedulers=[]), True, None),
    (dict(meta=META, message_hub={}), True, r'no whole state of a training \(optimizer, param_schedulers is missing'),
    (dict(meta=META), False, r'weights alone, no state of a training \(message_hub is missing\)'),
    (dict(meta=None, message_hub={}), False, r'\(epoch, iter is missing\)'),
    (dict(meta=dict(epoch=1), message_hub={}), False, r'\(iter is missing\). To begin .* load_from=a.pth'),
    ([], False, r'\(meta, message_hub is missing\)'),
])
def test_what_mmengine_needs(content, flexible, message):
    cfg = Config(dict(param_scheduler=[{}], **(dict(runner_type='FlexibleRunner') if flexible else {})))
    if message is None:
        return check_resumable(content, 'a.pth', cfg)
    with pytest.raises(PreflightError, match=message):
        check_resumable(content, 'a.pth', cfg)
