"""KAN hooks in mmengine's runner: arguments, models that do not fit, copies, a RKANet, one layer over several maps."""

import copy
import pickle

import pytest
import torch
from kan_runs import Images, Model, runner
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from rkan_mm.engine import KANGridUpdateHook, KANRegularizationHook
from rkan_mm.models import KANConv2d, KANLinear, RKANet


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: KANGridUpdateHook(interval=0), 'interval must be at least 1 and 0 <= begin < end'),
    (lambda: KANGridUpdateHook(begin=0.5), 'in whole iterations .not epochs., got interval=100, begin=0.5, end=1000'),
    (lambda: KANGridUpdateHook(interval=1.5), 'in whole iterations .not epochs., got interval=1.5'),
    (lambda: KANGridUpdateHook(begin=5, end=5), 'got interval=100, begin=5, end=5'),
    (lambda: KANGridUpdateHook(refine={5: 0}),
     'refine must be grid sizes by iteration .not epoch., such as .5000: 10., got .5: 0'),
    (lambda: KANGridUpdateHook(refine={5.7: 3}), r'refine must be grid sizes .* got \{5.7: 3\}'),
    (lambda: KANGridUpdateHook(refine={'5.7': 3}), r"refine must be grid sizes .* got \{'5.7': 3\}"),
    (lambda: KANGridUpdateHook(refine={float('inf'): 3}), 'refine must be grid sizes .* got .inf: 3'),
    (lambda: KANGridUpdateHook(refine={'late': 10}), "refine must be grid sizes .* got {'late': 10}"),
    (lambda: KANGridUpdateHook(refine=[5, 10]), 'refine must be grid sizes'),
    (lambda: KANGridUpdateHook(begin=500, unform=0.5), 'no argument unform; there are interval, .*refine, uniform, '),
    (lambda: KANRegularizationHook(), 'KANRegularizationHook: give a factor for l1, entropy or smoothness'),
])
def test_wrong_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


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


class Head(BaseModel):
    """One layer over maps of several sizes, the last of which spread most, as a head over the levels of a FPN."""

    def __init__(self, maps, checkpointed=False):
        super().__init__()
        self.maps, self.checkpointed = maps, checkpointed
        self.conv = KANConv2d(2, 2, 3, padding=1, normalization='none')

    def forward(self, x, mode='tensor'):
        maps = [scale * x[:, :, :size, :size] for size, scale in self.maps]
        out = [checkpoint(self.conv, x, use_reentrant=False) if self.checkpointed else self.conv(x) for x in maps]
        return dict(loss=sum(y.square().mean() for y in out))


def test_the_grid_of_a_head_over_several_maps(tmp_path):
    """Is laid over all of them, not over the first alone; once it is known which layers are called again."""
    maps, hook = ((6, 0.1), (4, 1.0), (4, 3.0)), dict(type='KANGridUpdateHook', interval=2)
    heads = []
    for folder in ('whole', 'parts'):
        for max_iters in (3, 6) if folder == 'parts' else (6,):
            heads.append(Head(maps))
            runner(tmp_path / folder, [hook], heads[-1], max_iters, resume=max_iters == 6, lr=0.0).train()
    largest = 3 * max(Images()[i]['x'][:, :4, :4].abs().max() for i in range(12))
    assert 0.6 * largest < heads[0].conv.basis.interior().abs().max() < 1.1 * largest
    assert_close(heads[2].state_dict(), heads[0].state_dict(), rtol=0, atol=0)
    for checkpointed in (False, True):  # what is computed again is no other input
        heads.append(Head(maps[:1], checkpointed))
        runner(tmp_path / 'one', [dict(hook, outside=0.0)], heads[-1]).train()
    assert_close(heads[4].state_dict(), heads[3].state_dict())
    assert KANLinear(2, 1, normalization='none').update_grid([torch.zeros(2, 2), 5 * torch.ones(3, 2)])


class Copies(Hook):
    """Somebody copies the model in the midst of an iteration, and trains the copy, too."""

    def before_train_iter(self, runner, *args, **kwargs):
        runner.copy = pickle.loads(pickle.dumps(copy.deepcopy(runner.model)))
        runner.before = copy.deepcopy(runner.copy.state_dict())
        runner.losses = runner.copy.train()(torch.randn(5, 2, 6, 6), mode='loss')


def test_a_copy_of_the_model_has_no_part_in_the_hooks(tmp_path):
    run = runner(tmp_path, [dict(type='KANGridUpdateHook', outside=0.0, interval=1),
                            dict(type='KANRegularizationHook', l1=1.0, smoothness=1.0),
                            dict(type=Copies, priority='VERY_LOW')], Model('GaussianRBF'), max_iters=2)
    run.train()
    assert list(run.losses) == ['loss_own']
    assert_close(run.copy.state_dict(), run.before, rtol=0, atol=0)
    assert run.model.conv.basis.interior().abs().max() > 2


class Two(BaseModel):
    """Two networks, of which one has grids."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = Model('Chebyshev'), KANLinear(2, 1)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.discriminator(self.generator(x)).mean())


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_one_of_several_models_and_bad_data(tmp_path, bad):
    class Spoilt(Two):
        def forward(self, x, mode='tensor'):
            y = self.generator(x)
            self.discriminator(y.masked_fill(y > y.median(), bad))
            return dict(loss=y.mean())

    for model in (Two(), Spoilt()):
        run = runner(tmp_path, [dict(type='KANGridUpdateHook', outside=0.0, interval=2)], model, lr=0.0)
        run.train()
        assert model.discriminator.basis.grid.isfinite().all()
        assert model.discriminator.basis_weight.isfinite().all()
