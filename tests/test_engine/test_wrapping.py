"""What changes how weights lie in memory wraps the model anew, under the Runner and the FlexibleRunner."""

import weakref

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing import assert_close

from rkan_mm.engine import ChannelsLastHook, KANGridUpdateHook, RunError
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


def trained(folder, hook, flexible, wrapper='MMDistributedDataParallel', compile=False,
            find_unused_parameters=False, **more):
    wrapper = dict(type=wrapper, device_ids=None, find_unused_parameters=find_unused_parameters)
    data = [dict(x=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(i))) for i in range(8)]
    cfg = {**dict(
        model=Model(), work_dir=str(folder), experiment_name=folder.name, default_scope='mmengine', launcher='pytorch',
        train_dataloader=dict(dataset=data, batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False),
                              collate_fn=dict(type='default_collate')),
        train_cfg=dict(by_epoch=False, max_iters=4), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        randomness=dict(seed=0), custom_hooks=[hook] if hook else []), **more}
    runner = FlexibleRunner(
        **cfg, compile=compile, strategy=dict(type='DDPStrategy', model_wrapper=wrapper)) if flexible else Runner(
        **cfg, cfg=dict(model_wrapper_cfg=wrapper, compile=compile))
    runner.train()
    return runner


COMPILED = []


@torch._dynamo.register_backend(name='noted_here')
def backend(graph, inputs):
    COMPILED.append(graph)
    return graph.forward


@pytest.mark.parametrize('flexible', [False, True])
def test_what_is_compiled_stays_so(flexible, tmp_path, group):
    old = []

    class Watch(KANGridUpdateHook):
        def before_train_iter(self, runner, *args, **kwargs):
            if runner.iter == 2:
                COMPILED.clear()
                torch._dynamo.reset()  # what it holds of other tests
                old.append(weakref.ref(runner.model))
            super().before_train_iter(runner, *args, **kwargs)

    runner = trained(tmp_path, Watch(end=1, refine={2: 7}), flexible, compile=dict(backend='noted_here'))
    assert COMPILED
    assert old[0]() is not runner.model
    assert old[0]() is None  # it would send each gradient a second time


class Two(BaseModel):
    def __init__(self, freezes=False):
        super().__init__()
        self.a, self.b, self.freezes = Model(), Model(), freezes

    def train_step(self, data, optim_wrapper):
        self.b.requires_grad_(True)
        losses = {f'loss_{name}': getattr(self, name)(data['x'])['loss'] for name in ('a', 'b')}
        for name, loss in losses.items():
            optim_wrapper[name[5:]].update_params(loss)
        self.b.requires_grad_(not self.freezes)  # where a step ends, as mm's adversarial models do
        return losses

    def forward(self, x, mode='tensor'):
        return self.a(x)


@pytest.mark.parametrize('freezes', [False, True])
@pytest.mark.parametrize('unused', [False, True])
def test_models_that_are_wrapped_one_by_one(tmp_path, group, freezes, unused):
    """And stay so, each once, when their grids are refined."""
    model = Two(freezes)
    optimizers = OptimWrapperDict(**{name: OptimWrapper(torch.optim.SGD(getattr(model, name).parameters(), 0.1))
                                     for name in ('a', 'b')})
    trained(tmp_path, dict(type='KANGridUpdateHook', end=2, interval=1, outside=0.0, refine={2: 7}), False, model=model,
            optim_wrapper=optimizers, wrapper='MMSeparateDistributedDataParallel', find_unused_parameters=unused)
    assert isinstance(model.a, MMDistributedDataParallel)
    assert isinstance(model.a.module, Model)
    assert isinstance(model.b, MMDistributedDataParallel)
    assert model.b.module.kan.basis.grid_size == 7


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
