"""Grids that move and grow in mmengine's runner."""

import os
import types

import pytest
import torch
from kan_runs import Model, Two, runner
from killing import in_ranks
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from rkan_mm.engine import KANGridUpdateHook
from rkan_mm.models import KANLinear


def test_grids_are_updated_when_due(tmp_path):
    seen = []

    class Watch(KANGridUpdateHook):
        def _lay(self, runner, name, copies, layer, x):
            before = layer.basis.grid.clone()
            super()._lay(runner, name, copies, layer, x)
            if not before.equal(layer.basis.grid):
                seen.append((runner.iter, name, layer.basis_weight in runner.optim_wrapper.optimizer.state))

    run = runner(tmp_path, [Watch(interval=2, begin=1, end=4, outside=0.0)])
    run.train()
    assert seen == [(i, name, False) for i in (1, 3) for name in ('conv', 'fc')]  # once each, without Adam's moments
    assert run.model.conv.basis.interior().abs().max() > 4
    assert run.model.conv.basis_weight in run.optim_wrapper.optimizer.state  # collected again since
    assert not run.model.conv._forward_pre_hooks


@pytest.mark.parametrize(('outside', 'said'), [(0.9, True), (0.905, True), (0.0, False)])
def test_a_hook_that_never_moved_a_grid_says_so(tmp_path, monkeypatch, outside, said):
    run, warnings = runner(tmp_path, [KANGridUpdateHook(interval=2, outside=outside)]), []
    monkeypatch.setattr(run.logger, 'warning', warnings.append)
    run.train()
    text = (f'KANGridUpdateHook moved no grid in 3 updates: no more than {100 * outside:g}% of the inputs of any layer '
            'lay outside')
    assert any(text in warning for warning in warnings) == said


@pytest.mark.parametrize('change', [
    lambda layer: nn.utils.parametrizations.weight_norm(layer, 'basis_weight'),
    lambda layer: prune.l1_unstructured(layer, 'basis_weight', 0.3)], ids=['weight norm', 'pruning'])
def test_coefficients_that_cannot_be_fitted_are_told_before_the_run(tmp_path, change):
    run = runner(tmp_path, [dict(type='KANGridUpdateHook', begin=4, refine={5: 10})])
    change(run.model.conv)
    with pytest.raises(TypeError, match='the basis_weight of conv are computed from others'):
        run.train()
    assert run.iter == 0


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


def test_momentum_begins_anew_in_the_fused_form_of_sgd(tmp_path):
    """Which takes that of all parameters or of none; it ended the run."""
    states = []
    for fused in (False, True):
        run = runner(tmp_path / str(fused), [dict(type='KANGridUpdateHook', interval=3, outside=0.0, refine={2: 10})],
                     optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, fused=fused))
        run.train()
        states.append(run.model.state_dict())
    assert_close(states[1], states[0])


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
        def _lay(self, runner, name, copies, layer, x):
            seen.append((runner.iter, name, layer.basis_weight.grad))
            super()._lay(runner, name, copies, layer, x)

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
                                      (5, 'fc', None), (6, 10, None)]  # fc, called twice, after the step
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
        views = dict(optimizer, parameters_as_bucket_view=True)  # weights drifted apart
        with pytest.raises(ValueError, match='KANGridUpdateHook: with parameters_as_bucket_view=True'):
            runner(tmp_path, [dict(type='KANGridUpdateHook')], optimizer=views).train()
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


def test_a_refinement_of_the_command_line(tmp_path):
    """Whose keys are text, and stand beside the config's."""
    cfg = Config(dict(custom_hooks=[dict(type='KANGridUpdateHook', begin=90, end=95, refine={2: 10, 80: 20})]))
    cfg.merge_from_dict({'custom_hooks.0.refine.2': 7})
    run, warnings = runner(tmp_path, cfg.custom_hooks), []
    run.logger.warning = warnings.append
    run.train()
    assert run.model.conv.basis.grid_size == 7
    assert [each for each in warnings if 'begin 90, refine at 80 comes to nothing, as training ends after 6' in each]


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
    in_ranks(update_in_ranks, str(tmp_path / 'store'), str(tmp_path))


class Tasks(BaseModel):
    """A head for each task, and no data of some tasks in a batch, as mmpretrain's MultiTaskHead has it."""

    def __init__(self):
        super().__init__()
        self.body, self.seen = Model(), 0
        self.heads = nn.ModuleList(KANLinear(2, 2) for _ in range(3))

    def forward(self, x, mode='tensor'):
        x, self.seen = self.body(x), self.seen + 1
        heads = [self.heads[(self.seen + get_rank()) % 3], *self.heads[:get_rank()]]
        return dict(loss=sum(head(x).square().mean() for head in heads)) if mode == 'loss' else x


def update_different_layers(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    os.environ['LOCAL_RANK'] = str(rank)
    for counts in (1, 2):
        seen = []

        class Watch(KANGridUpdateHook):
            def _lay(self, runner, name, *args, seen=seen):
                seen.append((runner.iter, name))
                super()._lay(runner, name, *args)

        model = MMDistributedDataParallel(Tasks(), find_unused_parameters=True)
        run = runner(f'{folder}/{counts}', [Watch(interval=2, outside=0.0)], model, max_iters=6)
        run._distributed = True  # what a launcher sets; those of mmengine want GPUs
        run.optim_wrapper['accumulative_counts'] = counts
        run.train()
        own = ('body.conv', 'body.fc')
        assert seen == [(i + counts - 1, name) for i in (0, 2, 4) for name in (*own, f'heads.{(i + 1) % 3}')]
        assert run.model.module.body.conv.basis.interior().abs().max() > 3
        states = [None, None]
        torch.distributed.all_gather_object(states, run.model.module.state_dict())
        assert_close(states[0], states[1], rtol=0, atol=0)
    torch.distributed.destroy_process_group()


def test_ranks_that_run_different_layers(tmp_path):
    """The grid of one layer went to another."""
    in_ranks(update_different_layers, str(tmp_path / 'store'), str(tmp_path))
