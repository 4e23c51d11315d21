"""A training that stops early keeps its last weights, and counts on where it was broken off."""

import pytest

STOPPING = """
custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=2)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval={}, by_epoch={}))
"""


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_last_weights_are_kept(train_to, tmp_path, by_epoch):
    done, _ = train_to([10.0, 30.0, 20.0, 20.0, 20.0, 20.0], STOPPING.format(100, by_epoch))
    assert done.epoch == 4
    kept, = (tmp_path / 'work').glob('*.pth')
    assert kept.name == ('epoch_4.pth' if by_epoch else f'iter_{done.iter}.pth')
    resumed, _ = train_to([20.0], STOPPING.format(100, by_epoch).replace('=2', '=9'), '--resume', epochs=5)
    assert resumed.iter == done.iter // 4 * 5


def test_a_resumed_run_counts_on(train_to):
    train_to([10.0, 30.0, 20.0], STOPPING.format(1, True))
    done, _ = train_to([20.0, 20.0, 20.0], STOPPING.format(1, True), '--resume', epochs=8)
    assert done.epoch == 4


def test_a_run_that_had_ended_has(train_to, capfd):
    train_to([10.0, 30.0, 20.0, 20.0], STOPPING.format(1, True), epochs=8)
    done, _ = train_to([], STOPPING.format(1, True), '--resume', epochs=8)
    assert done.epoch == 4
    assert 'to go on, give EarlyStoppingHook a patience above 2.' in ''.join(capfd.readouterr())
