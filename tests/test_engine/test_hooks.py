"""KAN hooks in mmengine's runner."""

import os
import types

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from rkan_mm.engine import KANGridUpdateHook, KANRegularizationHook, allow_mmengine_globals
from rkan_mm.models import KANConv2d, KANLinear, RKANet
from rkan_mm.models.layers.curvature import curvature, input_range


class Images(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(x=4 * torch.randn(2, 6, 6, generator=generator))


class Model(BaseModel):
    def __init__(self, basis='BSpline', **args):
        super().__init__()
        torch.manual_seed(0)
        self.conv = KANConv2d(2, 4, 3, padding=1, basis=dict(type=basis, **args))
        self.fc = KANLinear(4, 2, basis=dict(type=basis, **args))

    def forward(self, x, mode='tensor'):
        x = self.conv(input=x)
        x = self.fc(self.fc(x.mean((2, 3))) @ self.fc.weight)  # the layer is called twice
        return dict(loss_own=x.square().mean()) if mode == 'loss' else x


def runner(folder, hooks=(), model=None, max_iters=6, lr=1e-3, optimizer=None, **args) -> Runner:
    return Runner(
        model=model or Model(), work_dir=str(folder), experiment_name='test', default_scope='mmengine',
        train_dataloader=dict(dataset=Images(), batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'),
                              sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=optimizer or dict(type='Adam', lr=lr)),
        randomness=dict(seed=0),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False),
                           logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=list(hooks), **args)


def test_grids_are_updated_when_due(tmp_path):
    seen = []

    class Watch(KANGridUpdateHook):
        def _update(self, runner, name, copies, layer, *inputs):
            before = layer.basis.grid.clone()
            super()._update(runner, name, copies, layer, *inputs)
            if not before.equal(layer.basis.grid):
                seen.append((runner.iter, name, layer.basis_weight in runner.optim_wrapper.optimizer.state))

    run = runner(tmp_path, [Watch(interval=2, begin=1, end=4, outside=0.0)])
    run.train()
    assert seen == [(i, name, False) for i in (1, 3) for name in ('conv', 'fc')]  # once each, without Adam's moments
    assert run.model.conv.basis.interior().abs().max() > 4
    assert run.model.conv.basis_weight in run.optim_wrapper.optimizer.state  # collected again since
    assert not run.model.conv._forward_pre_hooks


@pytest.mark.parametrize(('outside', 'said'), [(0.9, True), (0.0, False)])
def test_a_hook_that_never_moved_a_grid_says_so(tmp_path, monkeypatch, outside, said):
    run, warnings = runner(tmp_path, [KANGridUpdateHook(interval=2, outside=outside)]), []
    monkeypatch.setattr(run.logger, 'warning', warnings.append)
    run.train()
    text = 'KANGridUpdateHook moved no grid in 3 updates: no more than 90% of the inputs of any layer lay outside'
    assert any(text in warning for warning in warnings) == said


class Two(BaseModel):
    """As GANs have it: an optimizer for each of two models."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict(dict(a=Model(), b=Model()))

    def forward(self, x, mode='tensor'):
        return self.parts['a'](x, mode)

    def train_step(self, data, optim_wrapper):
        for name, part in self.parts.items():
            loss = part(data['x'], 'loss')['loss_own']
            optim_wrapper[name].update_params(loss)
        return dict(loss=loss.detach())


def test_several_optimizers(tmp_path):
    model = Two()
    wrappers = OptimWrapperDict(**{name: OptimWrapper(torch.optim.Adam(part.parameters(), 1e-3))
                                   for name, part in model.parts.items()})
    run = runner(tmp_path, [dict(type='KANGridUpdateHook', interval=2, outside=0.0, refine={3: 9})], model)
    run.optim_wrapper = wrappers
    run.train()
    for part in model.parts.values():
        assert part.conv.basis.grid_size == part.fc.basis.grid_size == 9
        assert all(p.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize('optimizer', [dict(type='AdamW', lr=1e-3), dict(type='SGD', lr=1e-3, momentum=0.9)],
                         ids=lambda optimizer: optimizer['type'])
def test_grids_that_are_trained_lose_what_the_optimizer_holds(tmp_path, optimizer):
    seen = []

    class Watch(KANGridUpdateHook):
        def _update(self, runner, name, copies, layer, *inputs):
            super()._update(runner, name, copies, layer, *inputs)
            state = runner.optim_wrapper.optimizer.state
            seen.append([parameter in state for parameter in layer.basis.parameters()])

    model = Model('RSWAF', trainable_grid=True, trainable_width=True)
    run = runner(tmp_path, [Watch(interval=4, begin=4, outside=0.0, refine={2: 10})], model, optimizer=optimizer)
    run.train()
    assert seen and not any(map(any, seen))  # noqa: PT018
    assert model.conv.basis.grid.shape == (1, 10)
    assert model.conv.basis.grid in run.optim_wrapper.optimizer.state  # since then


def test_accumulated_gradients_are_kept(tmp_path):
    """What is due in the midst waits for the step, in a run that was broken off there, too."""
    seen, hook = [], dict(interval=3, begin=1, outside=0.0, refine={2: 7, 5: 10})

    class Watch(KANGridUpdateHook):
        def _update(self, runner, name, copies, layer, *inputs):
            seen.append((runner.iter, name, layer.basis_weight.grad))
            super()._update(runner, name, copies, layer, *inputs)

        def _refine(self, runner, grid_size):
            seen.append((runner.iter, grid_size, runner.model.conv.basis_weight.grad))
            super()._refine(runner, grid_size)

    def train(folder, **args):
        run = runner(folder, [Watch(**hook)], **args)
        run.optim_wrapper['accumulative_counts'] = 2
        run.train()
        return run

    whole = train(tmp_path / 'whole', max_iters=8)
    assert [*dict.fromkeys(seen)] == [(2, 7, None), (2, 'conv', None), (2, 'fc', None), (4, 'conv', None),
                                      (4, 'fc', None), (6, 10, None)]
    seen.clear()
    train(tmp_path / 'parts', max_iters=6)  # the refinement at 5 has not been made
    assert train(tmp_path / 'parts', max_iters=8, resume=True).iter == 8
    assert seen.count((6, 10, None)) == 1
    assert whole.model.conv.basis.grid_size == 10


def test_grids_wait_for_the_slowest_of_several_optimizers():
    def wrapper(counts, inner):
        return types.SimpleNamespace(_accumulative_counts=counts, _inner_count=inner)

    hook = KANGridUpdateHook()
    hook._looked = -1
    for iteration, due in enumerate([[0], [], [], [], [1, 2, 3, 4]]):
        both = types.SimpleNamespace(optim_wrappers=dict(a=wrapper(1, iteration), b=wrapper(4, iteration)))
        assert [*hook._due(types.SimpleNamespace(iter=iteration, optim_wrapper=both))] == due


def test_grids_of_a_compiled_model_move(tmp_path):
    """Which was compiled before the hooks of the update came."""
    grids = []
    for name, compiled in (('plain', None), ('compiled', dict(backend='eager'))):
        run = runner(tmp_path / name, [dict(type='KANGridUpdateHook', interval=2, begin=3, outside=0.0, refine={4: 9}),
                                       dict(type='KANRegularizationHook', l1=0.1)])
        run.cfg.compile = compiled
        run.train()
        grids.append(run.model.state_dict())
    assert grids[0]['conv.basis.grid'].abs().max() > 4
    assert_close(grids[1], grids[0], rtol=1e-3, atol=1e-4)


def test_optimizers_that_are_sharded(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        optimizer = dict(type='ZeroRedundancyOptimizer', optimizer_type='Adam', lr=1e-3)
        run = runner(tmp_path, [dict(type='KANGridUpdateHook', outside=0.0, refine={2: 10})], optimizer=optimizer)
        run.train()
    finally:
        torch.distributed.destroy_process_group()
    assert run.iter == 6
    assert run.model.conv.basis.grid_size == 10


def test_refinement_and_resuming(tmp_path):
    hook = dict(type='rkan_mm.KANGridUpdateHook', interval=2, end=2, refine={2: 10, 4: 20})
    whole = runner(tmp_path / 'whole', [hook])
    whole.train()
    assert whole.model.conv.basis.grid_size == 20
    assert whole.model.fc.basis_weight.shape == (2, 4, 23)

    first = runner(tmp_path / 'parts', [hook], max_iters=3)
    first.train()
    assert first.model.conv.basis.grid_size == 10
    allow_mmengine_globals()  # as our tools do
    second = runner(tmp_path / 'parts', [hook], resume=True)
    second.train()
    assert_close(second.model.state_dict(), whole.model.state_dict())
    state = second.optim_wrapper.optimizer.state
    assert state[second.model.conv.basis_weight]['exp_avg'].shape == second.model.conv.basis_weight.shape


@pytest.mark.parametrize('grow', [False, True])
def test_moving_average_follows_the_grid(tmp_path, grow):
    run = runner(tmp_path, [dict(type='EMAHook'), dict(type='KANGridUpdateHook', interval=2, begin=1, grow=grow)])
    run.train()
    average = next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    for name in ('conv', 'fc'):
        ours, theirs = getattr(run.model, name), getattr(average, name)
        ends = ours.basis.interior()[:, [0, -1]]
        assert not ends.allclose(torch.tensor([-1.0, 1.0]))  # it was updated
        assert_close(theirs.basis.grid, ours.basis.grid)
        assert theirs.basis_weight.shape == ours.basis_weight.shape


def test_moving_average_is_refined_too(tmp_path):
    run = runner(tmp_path, [dict(type='EMAHook'), dict(type='KANGridUpdateHook', refine={2: 10})])
    run.train()
    average = next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    assert average.conv.basis_weight.shape == run.model.conv.basis_weight.shape
    assert average(torch.rand(1, 2, 6, 6)).isfinite().all()


@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev'])
def test_penalties_join_the_loss(tmp_path, basis):
    model = Model(basis)
    factors = dict(l1=0.1, entropy=0.2, smoothness=0.3)
    run = runner(tmp_path, [dict(type='KANRegularizationHook', **factors)], model, max_iters=1, lr=0.0)
    run.train()
    penalties = [layer.regularization() for layer in (model.conv, model.fc)]
    if basis == 'Chebyshev':  # whose second derivatives count, over the inputs that the layers have had
        x = torch.stack([Images()[i]['x'] for i in range(2)])
        pooled = model.conv(x).mean((2, 3))
        inputs = dict(conv=x, fc=torch.cat([pooled, model.fc(pooled) @ model.fc.weight]))
        penalties += [dict(smoothness=curvature(layer, input_range(layer, inputs[name])), l1=0, entropy=0)
                      for name, layer in (('conv', model.conv), ('fc', model.fc))]
        penalties = [dict(dict(smoothness=0), **penalty) for penalty in penalties]
    logged = run.message_hub
    for name, factor in factors.items():
        value = logged.get_scalar(f'train/loss_kan_{name}').current()
        assert_close(value, factor * sum(penalty[name] for penalty in penalties).item(), rtol=1e-4, atol=1e-6)
    own = model.train()(torch.stack([Images()[i]['x'] for i in range(2)]), mode='loss')['loss_own'].item()
    total = own + sum(logged.get_scalar(f'train/loss_kan_{name}').current() for name in factors)
    assert_close(float(logged.get_scalar('train/loss').current()), total, rtol=1e-5, atol=1e-6)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model.fc._forward_pre_hooks
    assert not isinstance(model(torch.rand(1, 2, 6, 6)), dict)


@pytest.mark.parametrize(('model', 'said'), [(Two, 1), (Model, 0)])
def test_penalties_that_come_to_nothing(tmp_path, model, said):
    """Where a train_step calls parts of the model alone."""
    model = model()
    run, warnings = runner(tmp_path, [KANRegularizationHook(l1=1.0)], model), []
    if said:
        run.optim_wrapper = OptimWrapperDict(**{name: OptimWrapper(torch.optim.Adam(part.parameters(), 1e-3))
                                                for name, part in model.parts.items()})
    run.logger.warning = warnings.append
    run.train()
    assert len([each for each in warnings if 'KANRegularizationHook adds nothing' in each]) == said


def test_penalties_have_gradients(tmp_path):
    model = Model()
    runner(tmp_path, [KANRegularizationHook(l1=100.0)], model, max_iters=1, lr=0.0).train()
    before = model.conv.basis_weight.abs().mean().item()  # the seed draws the same weights again
    runner(tmp_path, [KANRegularizationHook(l1=100.0)], model).train()
    assert model.conv.basis_weight.abs().mean() < before


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: KANGridUpdateHook(interval=0), 'interval must be at least 1 and 0 <= begin < end'),
    (lambda: KANGridUpdateHook(begin=5, end=5), 'got interval=100, begin=5, end=5'),
    (lambda: KANGridUpdateHook(refine={5: 0}), 'refine must be grid sizes by iteration, such as .5000: 10., got .5: 0'),
    (lambda: KANGridUpdateHook(refine={'late': 10}), "refine must be grid sizes .* got {'late': 10}"),
    (lambda: KANGridUpdateHook(refine=[5, 10]), 'refine must be grid sizes'),
    (lambda: KANGridUpdateHook(begin=500, unform=0.5), 'no argument unform; there are interval, .*refine, uniform, '),
    (lambda: KANRegularizationHook(), 'KANRegularizationHook: give a factor for l1, entropy or smoothness'),
])
def test_wrong_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_refinement_of_the_command_line(tmp_path):
    """Whose keys are text, and stand beside the config's."""
    cfg = Config(dict(custom_hooks=[dict(type='KANGridUpdateHook', begin=90, end=95, refine={2: 10, 80: 20})]))
    cfg.merge_from_dict({'custom_hooks.0.refine.2': 7})
    run, warnings = runner(tmp_path, cfg.custom_hooks), []
    run.logger.warning = warnings.append
    run.train()
    assert run.model.conv.basis.grid_size == 7
    assert [each for each in warnings if 'begin 90, refine at 80 comes to nothing, as training ends after 6' in each]


class Plain(BaseModel):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.fc(x.mean((2, 3))).sum())


@pytest.mark.parametrize(('hook', 'model', 'message'), [
    (dict(type='KANGridUpdateHook'), Plain(), 'KANGridUpdateHook: Plain has no KAN layer with a basis on a grid'),
    (dict(type='KANGridUpdateHook', refine={5: 1}), Model('GaussianRBF'),
     r'refine=\{5: 1\}, but a grid of GaussianRBF \(conv\) needs at least 2'),
    (dict(type='KANRegularizationHook', l1=1.0), Plain(), 'KANRegularizationHook: Plain has no KAN layer'),
    (dict(type='KANRegularizationHook', smoothness=1.0), Model('GaussianRBF', grid_size=2),
     "no KAN layer of Model has a 'smoothness' penalty; smoothness needs one that has run"),
], ids=str)
def test_models_that_do_not_fit(tmp_path, hook, model, message):
    with pytest.raises(ValueError, match=message):
        runner(tmp_path, [hook], model).train()


def update_in_ranks(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    hook = dict(type='KANGridUpdateHook', interval=2, outside=0.0, refine={3: 10})
    run = runner(folder, [hook], MMDistributedDataParallel(Model()), max_iters=5)
    run._distributed = True  # what a launcher sets; those of mmengine want GPUs
    run.cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    os.environ['LOCAL_RANK'] = str(rank)
    run.train()
    model = run.model.module
    assert model.conv.basis.grid_size == 10
    assert model.conv.basis.interior().abs().max() > 3
    states = [None, None]
    torch.distributed.all_gather_object(states, model.state_dict())
    assert_close(states[0], states[1], rtol=0, atol=0)
    torch.distributed.destroy_process_group()


def test_ranks_stay_equal(tmp_path):
    torch.multiprocessing.spawn(update_in_ranks, (str(tmp_path / 'store'), str(tmp_path)), nprocs=2)


class RKANModel(BaseModel):
    """A RKANet, whose KAN convolutions share their functions among channels."""

    def __init__(self, basis='BSpline', with_cp=False):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.backbone = RKANet(dict(type='mmdet.ResNet', depth=18, base_channels=4, stem_channels=4, norm_eval=False),
                               block=dict(type='RKANBlock', basis=dict(type=basis)), with_cp=with_cp)

    def forward(self, x, mode='tensor'):
        x = self.backbone(self.stem(nn.functional.interpolate(x, size=(64, 64))))[-1]
        return dict(loss_own=x.square().mean()) if mode == 'loss' else x


@pytest.mark.parametrize('with_cp', [False, True])
def test_all_hooks_on_a_rkanet(tmp_path, with_cp):
    model = RKANModel(with_cp=with_cp)  # its grids move in the midst of a block that is computed again
    run = runner(tmp_path, [dict(type='KANGridUpdateHook', interval=2, begin=1, end=4, outside=0.0, refine={5: 10}),
                            dict(type='KANRegularizationHook', l1=0.1, smoothness=0.1), dict(type='EMAHook')], model)
    run.train()
    average = next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    for kan in ('kan1', 'kan2'):
        ours, theirs = (getattr(each.backbone.bridges['layer4'].block, kan) for each in (model, average))
        assert ours.basis.grid_size == 10
        assert not ours.basis.interior()[0, [0, -1]].allclose(torch.tensor([-1.0, 1.0]))
        assert_close(theirs.basis.grid, ours.basis.grid)
    assert run.message_hub.get_scalar('train/loss_kan_smoothness').current() > 0


def test_what_a_polynomial_rkanet_can_do(tmp_path):
    with pytest.raises(ValueError, match='no KAN layer with a basis on a grid, such as BSpline; its bases are Chebysh'):
        runner(tmp_path, [dict(type='KANGridUpdateHook')], RKANModel('Chebyshev')).train()
    runner(tmp_path, [dict(type='KANRegularizationHook', l1=0.1)], RKANModel('Chebyshev'), max_iters=1).train()
