import os

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version
from small_runs import CLASSIFIER

from rkan_mm.apis import runner
from rkan_mm.apis.resume import newest_whole
from rkan_mm.engine import allow_mmengine_globals
from rkan_mm.preflight import PreflightError

pytestmark = pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.6'),
                                reason='before torch 2.6 loading is not restricted by default')


def test_a_message_hub_is_read_safely(tmp_path):
    hub = MessageHub.get_instance('test_a_message_hub_is_read_safely')
    for step in range(3):
        hub.update_scalar('train/loss', torch.tensor(float(step)), 2)
        hub.update_info('iter', step)
    torch.save(dict(message_hub=hub.state_dict()), tmp_path / 'checkpoint.pth')
    allow_mmengine_globals()
    loaded = torch.load(tmp_path / 'checkpoint.pth', weights_only=True)['message_hub']
    assert loaded['log_scalars']['train/loss'].statistics('mean') == 0.5  # 3 over 6 counts


class Reach:
    """Pickles as getattr(owner, name)."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(('owner', 'name'), [
    *((HistoryBuffer, name) for name in ('__init__', '__class__', 'register_statistics')),
    (OneCycleParamScheduler, '__init__')])
def test_getattr_reaches_nothing_else(tmp_path, owner, name):
    allow_mmengine_globals()
    torch.save(Reach(owner, name), tmp_path / 'bad.pth')
    with pytest.raises(Exception, match=f"asks for attribute '{name}'"):
        torch.load(tmp_path / 'bad.pth', weights_only=True)


def test_a_schedule_is_read_and_never_built(tmp_path):
    allow_mmengine_globals()
    torch.save(OneCycleLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), eta_max=0.1, total_steps=4).state_dict(),
               tmp_path / 'good.pth')
    read = torch.load(tmp_path / 'good.pth', weights_only=True)
    assert read['anneal_func'] is OneCycleParamScheduler._annealing_cos
    torch.save(OneCycleParamScheduler.__new__(OneCycleParamScheduler), tmp_path / 'bad.pth')
    with pytest.raises(Exception, match='Weights only load failed|is not a type object'):
        torch.load(tmp_path / 'bad.pth', weights_only=True)


def test_a_training_with_one_cycle_goes_on_and_is_tested(small_data, tmp_path):
    """It could not be tested, and --resume began anew over its checkpoints."""
    text = CLASSIFIER.replace("'pictures'", repr(str(small_data / 'pictures')))
    (tmp_path / 'cls.py').write_text(text + """
randomness = dict(seed=0)
train_cfg = dict(by_epoch=True, max_epochs=3)
param_scheduler = dict(type='OneCycleLR', eta_max=0.01, total_steps=9, by_epoch=False, end=9)
""")
    argv, work = [str(tmp_path / 'cls.py')], ['--work-dir', str(tmp_path / 'work')]
    whole = runner.train([*argv, '--work-dir', str(tmp_path / 'whole')])
    for epochs in (1, 2, 3):
        done = runner.train([*argv, *work, '--resume', '--cfg-options', f'train_cfg.max_epochs={epochs}'])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(done.model.state_dict()[name], value)
    assert 'accuracy/top1' in runner.test([*argv, str(tmp_path / 'work/epoch_3.pth'), *work])


@pytest.mark.parametrize('older', [False, True])
def test_what_cannot_be_read_is_not_written_over(tmp_path, older):
    """By a run from the beginning, or from a checkpoint before it."""
    if older:
        torch.save(dict(meta=dict(time='20260101_000000', iter=3), state_dict={}), tmp_path / 'epoch_1.pth')
        assert newest_whole(Config(dict(work_dir=str(tmp_path)))) == str(tmp_path / 'epoch_1.pth')
    torch.save(dict(meta=dict(of=Reach(HistoryBuffer, '__init__'))), tmp_path / 'epoch_2.pth')
    with pytest.raises(PreflightError, match="epoch_2.pth' cannot be read as plain weights"):
        newest_whole(Config(dict(work_dir=str(tmp_path))))
    if older:
        os.utime(tmp_path / 'epoch_2.pth', (0, 0))
        assert newest_whole(Config(dict(work_dir=str(tmp_path)))) == str(tmp_path / 'epoch_1.pth')
