import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.utils import digit_version

from rkan_mm.engine import allow_mmengine_globals

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


@pytest.mark.parametrize('name', ['__init__', '__class__', 'register_statistics'])
def test_getattr_reaches_nothing_else(tmp_path, name):
    allow_mmengine_globals()
    torch.save(Reach(HistoryBuffer, name), tmp_path / 'bad.pth')
    with pytest.raises(Exception, match=f"asks for attribute '{name}'"):
        torch.load(tmp_path / 'bad.pth', weights_only=True)
