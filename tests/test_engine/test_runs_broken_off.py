"""Steps that raise, as for want of memory or by Ctrl-C: what the hooks hung at the model does nothing from then on."""

import copy

import pytest
import torch
from kan_runs import Model, runner
from mmengine.hooks import EMAHook, Hook
from torch.testing import assert_close

X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Breaks(Model):
    steps = 0

    def forward(self, x, mode='tensor'):
        x = super().forward(x, mode)
        self.steps += 1
        if self.steps == 3:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize('hook', [dict(type='KANGridUpdateHook', interval=2, end=3, outside=0.0),
                                  dict(type='KANRegularizationHook', smoothness=1e-3),
                                  dict(type='KANVisualizationHook', by_epoch=False)], ids=lambda hook: hook['type'])
def test_a_step_that_is_broken_off(tmp_path, hook):
    run = runner(tmp_path, [hook], Breaks())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    model = run.model.eval()
    grids = model.conv.basis.grid.clone(), model.fc.basis.grid.clone()
    with torch.no_grad():
        expected = model(9 * X)
    assert_close((model.conv.basis.grid, model.fc.basis.grid), grids, rtol=0, atol=0)
    run = runner(tmp_path / 'again', [hook], model)
    run.train()
    assert model(X).isfinite().all()
    assert expected.isfinite().all()


def test_what_is_compiled_stays_so_after_a_broken_update(tmp_path):
    """As the model of a second run in one process, or of one that goes on with less memory."""
    calls = []
    run = runner(tmp_path, [dict(type='KANGridUpdateHook', interval=2, outside=0.0)], Breaks())
    run.cfg.compile = dict(backend='eager')
    with pytest.raises(KeyboardInterrupt):  # in the third step, which an update is due in
        run.train()
    torch.compile(lambda x: x + 1, backend=lambda graph, inputs: calls.append(graph) or graph.forward)(X)
    assert len(calls) == 1
    assert not type(vars(run.model).get('train_step')).__name__.startswith('_')


def test_the_same_runner_trains_again(tmp_path):
    moved = []

    class Watch(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, *args, **kwargs):
            moved.append((runner.iter, runner.model.conv.grid_changes))

    run = runner(tmp_path, [dict(type='KANGridUpdateHook', interval=2, begin=2, end=3, outside=0.0), Watch()], Breaks())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    before = run.model.conv.grid_changes
    run.train_loop.run()
    assert run.model.conv.grid_changes - before <= 1
    assert not run.model.conv._forward_pre_hooks
    assert len(moved) > 3


class Tied(Model):
    """Two layers of the same coefficients, on other inputs."""

    def __init__(self):
        super().__init__()
        self.other = copy.deepcopy(self.fc)
        self.other.basis_weight = self.fc.basis_weight

    def forward(self, x, mode='tensor'):
        y = super().forward(20 * x, mode)
        if mode == 'loss':
            y['loss_other'] = self.other(3 * self.conv(x).mean((2, 3))).square().mean()
        return y


class Keep(Hook):
    def before_train(self, runner):
        self.at_first = copy.deepcopy(runner.model)


@pytest.mark.parametrize('options', [dict(grow=True), dict(refine={2: 10}), dict(uniform=0.0)], ids=str)
def test_layers_with_tied_coefficients_and_their_averages(tmp_path, options):
    """They are updated together, once, so that what one has computed can go backward."""
    keep = Keep()
    hooks = [dict(type='EMAHook', momentum=0.2),
             dict(type='KANGridUpdateHook', interval=2, outside=0.0, **options), keep]
    run = runner(tmp_path, hooks, Tied(), lr=0.0)
    run.train()
    average = next(hook for hook in run.hooks if isinstance(hook, EMAHook)).ema_model.module
    for model in (run.model, average):
        assert model.fc.basis_weight is model.other.basis_weight
        assert model.fc.grid_changes == model.other.grid_changes > 0
        assert model.fc.basis.grid.equal(model.other.basis.grid)
        if options.get('grow'):  # the functions stay what they are
            x = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) - 0.5
            for name in ('fc', 'other'):
                assert_close(getattr(model, name)(x), getattr(keep.at_first, name)(x), rtol=0, atol=1e-2)
    assert_close(average.state_dict(), run.model.state_dict(), rtol=1e-4, atol=1e-4)
    runner(tmp_path / 'trained', hooks[:2], Tied(), lr=1e-2).train()
