"""Runs that begin or go on with checkpoints of other grids and of formulas."""

import os
from types import SimpleNamespace

import pytest
import torch
from kan_runs import Model, runner
from killing import in_ranks
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import BaseOptimWrapper
from torch.testing import assert_close

from rkan_mm.engine import allow_mmengine_globals
from rkan_mm.engine.checkpoint_form import _averaged, forget_in
from rkan_mm.models.layers.locked import Fixed, lock

FORM = dict(type='rkan_mm.CheckpointFormHook')
REFINE = dict(type='KANGridUpdateHook', interval=2, end=3, outside=0.0, refine={2: 10})


@pytest.fixture(autouse=True)
def _safe():
    allow_mmengine_globals()  # as our tools do


def locked(basis='BSpline'):
    model = Model(basis)
    lock(model.fc, {(0, 1): Fixed('sin', (1.0, 2.0, 0.0, 0.0))})
    return model


def average(run):
    return next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook').ema_model


def groups_each(run):
    """With a group of the optimizer for each parameter, as paramwise options make them."""
    run.optim_wrapper['paramwise_cfg'] = dict(bias_lr_mult=2.0)
    return run


@pytest.mark.parametrize('each', [False, True], ids=['one group', 'groups'])
@pytest.mark.parametrize('basis', ['BSpline', 'Chebyshev'])
def test_constants_of_a_checkpoint_are_trained_and_resumed(tmp_path, basis, each):
    def made(*args, **kwargs):
        run = runner(*args, lr=0.1, **kwargs)
        return groups_each(run) if each else run

    torch.save(dict(state_dict=locked(basis).state_dict(), meta={}), tmp_path / 'locked.pth')
    schedule = dict(param_scheduler=dict(type='LinearLR', start_factor=0.1, end=3, by_epoch=False))
    for name, model in (('loaded', Model(basis)), ('built', locked(basis))):
        run = made(tmp_path / name, [FORM], model, max_iters=3, load_from=str(tmp_path / 'locked.pth'), **schedule)
        run.train()
        constants = run.model.fc.locked.constants
        assert not constants.equal(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        assert constants in run.optim_wrapper.optimizer.state
        whole = made(tmp_path / name, [FORM], locked(basis), max_iters=6, resume=True, **schedule) if (
            name == 'built') else None
        again = made(tmp_path / name, [FORM], Model(basis), max_iters=6, resume=True, **schedule)
        again.train()
        assert again.iter == 6
        if whole is not None:
            (tmp_path / name / 'last_checkpoint').write_text(str(tmp_path / name / 'iter_3.pth'))
            whole.train()
            assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_an_optimizer_that_knew_the_form_before(tmp_path):
    """Adagrad's sums are there when it is built."""
    save_finer(tmp_path / 'finer.pth')
    run = runner(tmp_path, [FORM], optimizer=dict(type='Adagrad', lr=1e-3), load_from=str(tmp_path / 'finer.pth'))
    run.train()
    state = run.optim_wrapper.optimizer.state
    assert state[run.model.conv.basis_weight]['sum'].shape == (4, 2, 13, 3, 3)


@pytest.mark.parametrize('buffers', [False, True])
@pytest.mark.parametrize('how', ['resume', 'load_from'])
def test_averages_go_on_from_a_refined_checkpoint(tmp_path, buffers, how):
    hooks = [dict(type='EMAHook', update_buffers=buffers), dict(REFINE, begin=100, end=101)]
    runner(tmp_path, hooks, max_iters=3).train()
    if how == 'resume':
        whole = runner(tmp_path / 'whole', hooks)
        whole.train()
        run = runner(tmp_path, hooks, resume=True)
    else:
        run = runner(tmp_path / 'new', [hooks[0], FORM], max_iters=3, load_from=str(tmp_path / 'iter_3.pth'))
    run.train()
    assert average(run).module.conv.basis.grid_size == 10
    if how == 'resume':
        assert_close(average(run).module.state_dict(), average(whole).module.state_dict(), rtol=1e-5, atol=1e-6)


def test_averages_take_formulas(tmp_path):
    torch.save(dict(state_dict=locked().state_dict(), meta={}), tmp_path / 'locked.pth')
    run = runner(tmp_path, [FORM, dict(type='EMAHook', momentum=0.5)], lr=0.1, load_from=str(tmp_path / 'locked.pth'))
    run.train()
    assert not average(run).module.fc.locked.constants.equal(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))


def pretrained(path):
    model = Model()
    model.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return model


def save_finer(path):
    model = Model()
    for layer in (model.conv, model.fc):
        layer.refine_grid(10)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)


@pytest.mark.parametrize('hook', [FORM, dict(REFINE, begin=100, end=101, refine={})], ids=lambda hook: hook['type'])
@pytest.mark.parametrize('average', [dict(), dict(update_buffers=True), dict(begin_iter=2)], ids=str)
def test_finer_grids_of_an_init_cfg(tmp_path, hook, average):
    """They come when the averages have their form, and Adagrad its sums; what was refined and resumed keeps its own."""
    save_finer(tmp_path / 'finer.pth')
    hooks, optimizer = [hook, dict(type='EMAHook', momentum=0.5, **average)], dict(type='Adagrad', lr=1e-3)
    runs = [runner(tmp_path / name, hooks, pretrained(tmp_path / 'finer.pth'), max_iters, resume=resume,
                   optimizer=optimizer) for name, max_iters, resume in (('whole', 6, False), ('parts', 3, False),
                                                                         ('parts', 6, True))]
    for run in runs:
        run.train()
    whole, again = runs[0], runs[-1]
    averages = [next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
                for run in (whole, again)]
    for state, name in ((whole.model.state_dict(), 'model'), (averages[0].state_dict(), 'average')):
        assert state['conv.basis_weight'].shape == (4, 2, 13, 3, 3), name
    assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert_close(averages[1].state_dict(), averages[0].state_dict(), rtol=0, atol=0)


def train_in_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    allow_mmengine_globals()
    os.environ['LOCAL_RANK'] = str(rank)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)

    def train(name, hooks, model, unused, **args):
        model = MMDistributedDataParallel(model, find_unused_parameters=unused)
        run = runner(f'{folder}/{name}', hooks, model, lr=0.05, **args)
        run._distributed = True  # what a launcher sets; those of mmengine want GPUs
        run.cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None,
                                         find_unused_parameters=unused)
        run.train()
        states = [None, None]
        torch.distributed.all_gather_object(states, run.model.module.state_dict())
        assert_close(states[0], states[1], rtol=0, atol=0)
        return run.model.module

    if rank == 0:
        torch.save(dict(state_dict=locked().state_dict(), meta={}), f'{folder}/small.pth')
        save_finer(f'{folder}/finer.pth')
    torch.distributed.barrier()
    for unused in (True, False):
        name = f'loaded-{unused}'
        model = train(name, [FORM], Model(grid_size=10), unused, max_iters=3, load_from=f'{folder}/small.pth')
        assert model.conv.basis.grid_size == 5
        assert not model.fc.locked.constants.equal(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
    for unused in (True, False):
        model = train(f'begun-{unused}', [FORM], pretrained(f'{folder}/finer.pth'), unused, max_iters=3)
        assert model.conv.basis.grid_size == 10
    train('refined', [REFINE], Model(), False, max_iters=3)
    model = train('refined', [REFINE], Model(), False, max_iters=6, resume=True)
    assert model.conv.basis.grid_size == 10
    torch.distributed.destroy_process_group()


def test_ranks_stay_equal_after_a_checkpoint_of_another_form(tmp_path):
    in_ranks(train_in_ranks, str(tmp_path))


def test_an_optimizer_in_a_wrapper_of_another_kind_forgets():
    """As those of mmengine's strategies are."""
    own = type('Wrapper', (BaseOptimWrapper,), dict.fromkeys(BaseOptimWrapper.__abstractmethods__))
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight])
    optimizer.step()
    assert weight in optimizer.state
    forget_in(SimpleNamespace(optim_wrapper=own(optimizer)), [weight])
    assert weight not in optimizer.state


def test_averages_of_a_model_that_got_other_layers_since(tmp_path):
    """A hook may have put them in after the average was copied."""
    run = runner(tmp_path, [FORM, dict(type='EMAHook')], Model())
    ema = next(hook for hook in run.hooks if type(hook).__name__ == 'EMAHook')
    ema.before_run(run)
    copied = ema.ema_model.module
    assert list(_averaged(run)) == [(copied.conv, run.model.conv), (copied.fc, run.model.fc)]
    copied.fc = torch.nn.Linear(4, 2)
    assert list(_averaged(run)) == [(copied.conv, run.model.conv)]
