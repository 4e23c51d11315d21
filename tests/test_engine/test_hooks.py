"""KAN hooks in mmengine's runner: arguments, models that do not fit, all of them on a RKANet."""

import pytest
import torch
from kan_runs import Model, runner
from mmengine.model import BaseModel
from torch import nn
from torch.testing import assert_close

from rkan_mm.engine import KANGridUpdateHook, KANRegularizationHook
from rkan_mm.models import RKANet


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
