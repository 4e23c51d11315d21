import json
from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import HOOKS
from mmengine.visualization import Visualizer

from rkan_mm.engine import BestAndLastHook


@pytest.fixture
def runner(tmp_path, request):
    name = request.node.name
    visualizer = Visualizer.get_instance(name, vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path))
    return SimpleNamespace(epoch=0, message_hub=MessageHub.get_instance(name), visualizer=visualizer,
                           logger=MMLogger.get_instance(name, log_file=str(tmp_path / 'log')))


def validate(hook, runner, *accuracies):
    for value in accuracies:
        runner.epoch += 1
        hook.after_val_epoch(runner, {'accuracy/top1': value, 'accuracy/top5': 100})


def test_best_and_last_are_said_and_stored(runner, tmp_path):
    hook = HOOKS.build(dict(type='rkan_mm.BestAndLastHook'))
    assert isinstance(hook, Hook)
    validate(hook, runner, 10.0, 40.0, 40.0, 30.0)
    hook.after_train(runner)
    assert 'accuracy/top1: best 40.0000 (epoch 2), last 30.0000 (epoch 4)' in (tmp_path / 'log').read_text()
    scalars, = [json.loads(line) for line in next(tmp_path.rglob('scalars.json')).read_text().splitlines()]
    assert (scalars['best/accuracy/top1'], scalars['last/accuracy/top1'], scalars['step']) == (40, 30, 4)


def test_a_resumed_run_remembers(runner):
    validate(BestAndLastHook(), runner, 10.0, 40.0)
    state = runner.message_hub.state_dict()
    hub = MessageHub.get_instance('resumed')
    hub.load_state_dict(state)
    runner.message_hub = hub
    hook = BestAndLastHook()
    validate(hook, runner, 20.0)
    assert hook._memory(runner) == dict(best=dict(value=40.0, epoch=2), last=dict(value=20.0, epoch=3))


def test_without_validation_nothing_is_said(runner, tmp_path):
    BestAndLastHook().after_train(runner)
    assert (tmp_path / 'log').read_text() == ''


def test_a_metric_that_is_not_there(runner):
    with pytest.raises(KeyError, match="BestAndLastHook: no metric 'f1'; there are accuracy/top1, accuracy/top5"):
        validate(BestAndLastHook('f1'), runner, 1.0)
