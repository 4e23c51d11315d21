from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from rkan_mm.engine import LossCheckHook, RunError

BATCH = dict(inputs=[torch.zeros(1)], data_samples=[SimpleNamespace(img_path='a/1.jpg'),
                                                    SimpleNamespace(img_path='a/2.jpg')])


@pytest.fixture
def runner():
    hub = MessageHub.get_instance('test_loss_check_hook')
    hub.update_info('last_ckpt', 'work/epoch_3.pth')
    return SimpleNamespace(iter=41, message_hub=hub)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_the_batch_and_the_losses_are_named(runner, value):
    losses = dict(loss=torch.tensor(value), loss_cls=torch.tensor(value), loss_bbox=torch.tensor(1.0), acc=value)
    with pytest.raises(RunError, match=f'Iteration 42: loss = {value}, loss_cls = {value}. The batch: a/1.jpg, a/2.jpg'
                                       '. Nothing was saved since work/epoch_3.pth'):
        LossCheckHook().after_train_iter(runner, 0, BATCH, losses)


@pytest.mark.parametrize('outputs', [None, {}, dict(loss=torch.tensor(3e38)), dict(loss=1.0, acc=float('nan'))])
def test_finite_losses_pass(runner, outputs):
    LossCheckHook().after_train_iter(runner, 0, BATCH, outputs)


def test_losses_of_several_optimizers(runner):
    """Of which a train_step of the user's own makes no sum."""
    losses = dict(loss_d=torch.tensor(1.0), loss_g=torch.tensor([1.0, float('nan')]), real_score=float('nan'), lossy='')
    with pytest.raises(RunError, match=r'Iteration 42: loss_g = \[1.0, nan\]. The batch'):
        LossCheckHook().after_train_iter(runner, 0, BATCH, losses)
    LossCheckHook().after_train_iter(runner, 0, BATCH, dict(losses, loss_g=torch.tensor(2.0)))
