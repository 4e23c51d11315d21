"""What changes how weights lie in memory wraps the model anew, under the Runner and the FlexibleRunner."""

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing import assert_close

from rkan_mm.engine import ChannelsLastHook, RunError
from rkan_mm.models import KANConv2d
from rkan_mm.preflight import PreflightError, check


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.kan = nn.Conv2d(3, 4, 3), KANConv2d(4, 3, 1, basis=dict(type='BSpline'))

    def forward(self, x, mode='tensor'):
        return dict(loss=self.kan(self.stem(x)).square().mean())


@pytest.fixture
def group(tmp_path, monkeypatch):
    for name in ('LOCAL_RANK', 'RANK'):
        monkeypatch.setenv(name, '0')
    for name in ('WORLD_SIZE', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):  # mmengine would set threads for all that follows
        monkeypatch.setenv(name, '1')
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(folder, hook, flexible, **more):
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    data = [dict(x=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(i))) for i in range(8)]
    cfg = dict(
        model=Model(), work_dir=str(folder), experiment_name=folder.name, default_scope='mmengine', launcher='pytorch',
        train_dataloader=dict(dataset=data, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False),
                              collate_fn=dict(type='default_collate')),
        train_cfg=dict(by_epoch=False, max_iters=4), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        randomness=dict(seed=0), custom_hooks=[hook] if hook else [], **more)
    runner = FlexibleRunner(**cfg, strategy=dict(type='DDPStrategy', model_wrapper=wrapper)) if flexible else Runner(
        **cfg, cfg=dict(model_wrapper_cfg=wrapper))
    runner.train()
    return runner


@pytest.mark.parametrize('hook', [ChannelsLastHook.__name__, 'KANGridUpdateHook'])
def test_a_flexible_runner_trains_as_the_runner(hook, tmp_path, group):
    args = dict(type=hook, **(dict(end=1, refine={2: 7}) if hook.startswith('KAN') else {}))
    plain, flexible = trained(tmp_path / 'plain', args, False), trained(tmp_path / 'flexible', args, True)
    assert isinstance(flexible.model, MMDistributedDataParallel)
    assert flexible.strategy.model is flexible.model  # its checkpoints are of it
    model = flexible.model.module
    if hook == 'ChannelsLastHook':
        assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)
        assert_close(model.state_dict(), trained(tmp_path / 'contiguous', None, True).model.module.state_dict())
    else:
        assert model.kan.basis.grid_size == 7
    assert_close(model.state_dict(), plain.model.module.state_dict())


def test_both_begin_with_a_checkpoint_of_a_finer_grid(tmp_path, group):
    model = Model()
    model.kan.refine_grid(7)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'fine.pth')
    states = [model.module.state_dict() for model in (
        trained(tmp_path / str(flexible), dict(type='CheckpointFormHook'), flexible,
                load_from=str(tmp_path / 'fine.pth')).model for flexible in (False, True))]
    assert states[0]['kan.basis_weight'].shape[2] == 10
    assert not states[0]['kan.basis_weight'].equal(model.kan.basis_weight)
    assert_close(*states)


def test_a_sharded_model_is_not_laid_out_anew(group):
    runner = object.__new__(Runner)
    runner.model = FullyShardedDataParallel(Model(), device_id=torch.device('cpu'))
    with pytest.raises(RunError, match='ChannelsLastHook .*: FSDP keeps weights as flat shards'):
        ChannelsLastHook().before_train(runner)


@pytest.mark.parametrize('training', [True, False])
def test_nor_is_it_built(training):
    cfg = Config(dict(strategy=dict(type='rkan_mm.ResumableFSDPStrategy'), launcher='pytorch',
                      custom_hooks=[dict(type='rkan_mm.ChannelsLastHook')]))
    with pytest.raises(PreflightError, match='--channels-last.*: FSDP keeps weights as flat shards.* Leave it out'):
        check(cfg, training)
