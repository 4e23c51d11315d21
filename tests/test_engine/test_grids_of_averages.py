"""KANGridUpdateHook in models with moving averages (mean teacher, momentum encoder, EMAHook) and frozen nets."""

import copy

import pytest
import torch
from kan_runs import Model, runner
from mmdet.engine.hooks import MeanTeacherHook
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.testing import assert_close

from rkan_mm.models import KANLinear

X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Averaged(BaseModel):
    """A model with an average of a part of it, as mmdet's SoftTeacher, mmpretrain's BYOL and MoCo v2 or v3 have it."""

    def __init__(self, kind):
        super().__init__()
        self.student = Model()
        if kind.startswith('built twice'):
            self.teacher = Model().requires_grad_('no_grad' in kind)
        elif kind == 'copied part':  # under another name, in a container
            self.encoder_q = nn.Sequential(self.student.conv)
            self.encoder_k = ExponentialMovingAverage(self.encoder_q, 0.1)
        else:
            self.target = ExponentialMovingAverage(self.student, 0.1, update_buffers=kind == 'with buffers')
        self.kind = kind

    @property
    def pair(self):
        """The layers, and their averages."""
        ours, theirs = [self.student.conv, self.student.fc], dict(
            teacher=lambda: [self.teacher.conv, self.teacher.fc],
            encoder_k=lambda: [self.encoder_k.module[0]],
            target=lambda: [self.target.module.conv, self.target.module.fc])
        found = next(get() for name, get in theirs.items() if hasattr(self, name))
        return list(zip(ours, found, strict=False))

    def forward(self, x, mode='tensor'):
        if 'no_grad' in self.kind:  # all that makes it a teacher
            losses = self.student(x, mode) if 'behind' in self.kind else None
            with torch.no_grad():
                self.teacher(3 * x)
                if 'two views' in self.kind:
                    self.teacher(x)
            return losses or self.student(x, mode)
        for name in ('teacher', 'target'):  # before the student, on other images
            if hasattr(self, name):
                getattr(self, name)(3 * x)
        if self.kind == 'copied part':
            self.encoder_k(3 * x)
        return self.student(x, mode)

    def average(self):
        if self.kind.startswith('built twice'):  # as mmdet's MeanTeacherHook
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.data.mul_(0.9).add_(ours.data, alpha=0.1)
        elif self.kind == 'copied part':
            self.encoder_k.update_parameters(self.encoder_q)
        else:
            self.target.update_parameters(self.student)


class Average(Hook):
    def before_train(self, runner):
        for ours, theirs in runner.model.pair:
            theirs.load_state_dict(ours.state_dict())

    def after_train_iter(self, runner, *args, **kwargs):
        runner.model.average()


@pytest.mark.parametrize('options', [{}, dict(grow=True), dict(refine={2: 8}), dict(uniform=0.0)], ids=str)
@pytest.mark.parametrize('kind', ['built twice', 'built twice, no_grad', 'built twice, no_grad behind', 'copied',
                                  'copied part', 'with buffers', 'built twice, no_grad, two views'])
def test_student_and_teacher_share_one_grid(tmp_path, kind, options):
    model = Averaged(kind)
    hook = dict(type='KANGridUpdateHook', interval=2, outside=0.0, **options)
    runner(tmp_path, [hook, dict(type=Average)], model, lr=0.0).train()
    assert model.student.conv.basis.interior().abs().max() > 2  # it was updated; others may have all data inside
    for ours, theirs in model.pair:
        assert_close(theirs.basis.interior(), ours.basis.interior(), rtol=0, atol=0)
        # at a learning rate of 0 both stay what they are
        if 'behind' not in kind:  # which is fitted by itself, without the samples of the student
            assert_close(theirs.basis_weight, ours.basis_weight, rtol=1e-4, atol=1e-5)
    model = Averaged(kind)
    runner(tmp_path / 'trained', [hook, dict(type=Average)], model, lr=1e-3).train()
    for ours, theirs in model.pair:
        assert theirs.basis_weight.shape == ours.basis_weight.shape
        assert not theirs.basis_weight.allclose(ours.basis_weight)
        assert_close(theirs.basis.interior(), ours.basis.interior(), rtol=0, atol=0)


class Apart(Hook):
    """The iterations at whose end an average has another grid than its layer."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, *args, **kwargs):
        pair = runner.model.student.conv.basis, runner.model.teacher.conv.basis
        runner.apart = [*getattr(runner, 'apart', []), *[runner.iter] * (not pair[0].grid.equal(pair[1].grid))]


class Seldom(Average):
    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter in (2, 7):
            runner.model.average()


@pytest.mark.parametrize('kind', ['built twice', 'built twice, no_grad'])
@pytest.mark.parametrize('average', [dict(type=MeanTeacherHook, interval=5), dict(type=Seldom)], ids=str)
def test_an_average_that_is_made_less_often_than_grids_move(tmp_path, kind, average):
    """By another hook than mmdet's, it is known from its first change on, after a resumption, too."""
    hooks = [dict(type='KANGridUpdateHook', interval=2, outside=0.0, refine={5: 8}), average, dict(type=Apart)]
    run = runner(tmp_path, hooks, Averaged(kind), max_iters=4)
    run.train()
    assert run.apart == ([2] if average['type'] is Seldom else [])
    run = runner(tmp_path, hooks, Averaged(kind), max_iters=9, resume=True)
    run.train()
    assert run.iter == 9
    assert run.apart == []


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('options', [{}, dict(grow=True), dict(refine={2: 8, 4: 16})], ids=str)
def test_ema_hook_at_a_learning_rate_of_0(tmp_path, update_buffers, options):
    run = runner(tmp_path, [dict(type='EMAHook', momentum=0.2, update_buffers=update_buffers),
                            dict(type='KANGridUpdateHook', interval=2, outside=0.0, **options)], lr=0.0)
    run.train()
    average = next(hook for hook in run.hooks if isinstance(hook, EMAHook)).ema_model.module
    assert_close(average.state_dict(), run.model.state_dict(), rtol=1e-4, atol=1e-5)
    assert_close(average(X), run.model(X), rtol=1e-4, atol=1e-4)


def test_an_average_follows_a_trained_grid_whose_points_have_crossed():
    """Its own have not yet. It stayed as it was, in another shape than its layer."""
    layer = KANLinear(2, 3, basis=dict(type='RSWAF', trainable_grid=True))
    average, x = copy.deepcopy(layer), torch.rand(64, 2)
    with torch.no_grad():
        layer.basis.grid[:, 3] = layer.basis.grid[:, 4] + 0.1
    expected = average(x)
    layer.refine_grid(16, [average])
    assert average.basis_weight.shape == layer.basis_weight.shape
    assert_close(average.basis.grid, layer.basis.grid, rtol=0, atol=0)
    assert (average(x) - expected).square().mean() < 0.01 * expected.var()


class Prune(Hook):
    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 2:
            for layer in (runner.model.conv, runner.model.fc):
                layer.prune(0.5)


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('resumed', [False, True])
def test_pruning_in_a_run_with_moving_averages(tmp_path, update_buffers, resumed):
    hooks = [dict(type='EMAHook', momentum=0.2, strict_load=True, update_buffers=update_buffers), dict(type=Prune),
             dict(type='KANGridUpdateHook', interval=2, outside=0.0)]
    run = runner(tmp_path, hooks, max_iters=3)
    run.train()
    if resumed:
        run = runner(tmp_path, hooks, resume=True)
        run.train()
    assert run.model.conv.sparsity == 0.5
    fresh = Model()
    fresh.load_state_dict(torch.load(tmp_path / f'iter_{run.iter}.pth', weights_only=False)['state_dict'])
    assert fresh.conv.mask.equal(run.model.conv.mask)
    average = next(hook for hook in run.hooks if isinstance(hook, EMAHook)).ema_model.module
    assert_close(fresh.conv.basis_weight, average.conv.basis_weight)  # the average, as mmengine saves it
    assert_close(average.conv.basis.grid, run.model.conv.basis.grid)


def test_frozen_layers_keep_their_grids(tmp_path):
    model = Model()
    model.conv.requires_grad_(False)
    runner(tmp_path, [dict(type='KANGridUpdateHook', outside=0.0)], model, max_iters=1).train()
    assert_close(model.conv.basis.grid, Model().conv.basis.grid, rtol=0, atol=0)
    assert not torch.equal(model.fc.basis.interior(), Model().fc.basis.interior())
    model.requires_grad_(False)
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match='all KAN layers of Model are frozen'):
        runner(tmp_path, [dict(type='KANGridUpdateHook')], model).train()


class Adversarial(BaseModel):
    """As translation models of mm have it: a discriminator, which is frozen when a step ends."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, 2), KANLinear(2, 1)

    def forward(self, x, mode='tensor'):
        return self.generator(x.mean((2, 3)))

    def train_step(self, data, optim_wrapper):
        real, fake = data['x'].mean((2, 3)), self(data['x'])
        self.discriminator.requires_grad_(True)
        loss = (self.discriminator(fake.detach()) - self.discriminator(real)).mean()
        optim_wrapper['discriminator'].update_params(loss)
        self.discriminator.requires_grad_(False)
        optim_wrapper['generator'].update_params(-self.discriminator(fake).mean())
        return dict(loss=loss.detach())


class Noted(Hook):
    """The grid of a layer before each iteration."""

    def __init__(self, layer):
        self.layer, self.grids = layer, []

    def after_train_iter(self, runner, *args, **kwargs):
        self.grids.append(self.layer.basis.grid.clone())


def test_a_discriminator_is_trained_though_it_is_frozen_when_a_step_ends(tmp_path):
    model = Adversarial()
    noted = Noted(model.discriminator)
    hooks = [dict(type='KANGridUpdateHook', interval=2, outside=0.0, refine={1: 7, 5: 10}), noted]
    run = runner(tmp_path, hooks, model)
    run.optim_wrapper = OptimWrapperDict(**{name: OptimWrapper(torch.optim.Adam(part.parameters(), 1e-3))
                                            for name, part in model.named_children() if name != 'data_preprocessor'})
    run.train()
    assert [grid.shape[1] - 7 for grid in noted.grids] == [5, 7, 7, 7, 7, 10]
    assert not noted.grids[2].equal(noted.grids[1])
    assert not noted.grids[4].equal(noted.grids[2])


class Freezes(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        runner.model.conv.requires_grad_(False)


def test_a_layer_that_is_frozen_after_the_first_iteration_keeps_its_grid(tmp_path):
    model = Model()
    noted = Noted(model.conv)
    hooks = [dict(type='KANGridUpdateHook', interval=2, outside=0.0), dict(type=Freezes), noted]
    runner(tmp_path, hooks, model).train()
    assert not noted.grids[0].equal(Model().conv.basis.grid)
    assert all(grid.equal(noted.grids[0]) for grid in noted.grids)


class Taught(BaseModel):
    """A net that learns from another one of its kind, as in distillation, or two that learn from each other."""

    pair = ()

    def __init__(self, kind):
        super().__init__()
        self.kind, self.student, self.teacher = kind, Model(), Model()
        if kind != 'both trained':
            self.teacher.requires_grad_(False)

    def init_weights(self):
        torch.manual_seed(1)
        for p in self.teacher.parameters():
            nn.init.normal_(p, std=0.3)

    def forward(self, x, mode='tensor'):
        with torch.no_grad():
            ours, theirs = self.student(x), self.teacher(x)
        losses = dict(loss=(self.student(3 * x) - theirs).square().mean())
        if self.kind == 'both trained':
            losses['loss_of_teacher'] = (self.teacher(3 * x) - ours).square().mean()
        return losses

    def average(self):
        if self.kind == 'average':  # that does not begin as its layer
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.data.mul_(0.9).add_(ours.data, alpha=0.1)


@pytest.mark.parametrize('begin', [0, 3])
def test_a_frozen_net_of_the_same_kind_stays_as_it_is(tmp_path, begin):
    model, hook = Taught('frozen'), dict(type='KANGridUpdateHook', interval=1, begin=begin, outside=0.0, refine={2: 8})
    model.init_weights()
    expected = copy.deepcopy(model.teacher.state_dict())
    runner(tmp_path, [hook], model, max_iters=3).train()
    assert_close(model.teacher.state_dict(), expected, rtol=0, atol=0)
    model = Taught('frozen')
    runner(tmp_path, [hook], model, resume=True).train()
    assert_close(model.teacher.state_dict(), expected, rtol=0, atol=0)
    assert model.student.conv.basis.grid_size == 8
    assert model.student.conv.basis.interior().abs().max() > 4


@pytest.mark.parametrize(('kind', 'begin'), [('average', 0), ('average', 2), ('both trained', 0), ('both trained', 2)])
def test_two_nets_that_begin_apart(tmp_path, kind, begin):
    model = Taught(kind)
    hook = dict(type='KANGridUpdateHook', interval=10, begin=begin, outside=0.0)
    runner(tmp_path, [hook, dict(type=Average)], model).train()
    for ours, theirs in ((model.student.conv, model.teacher.conv), (model.student.fc, model.teacher.fc)):
        assert theirs.basis.interior().abs().max() > 1.2  # as the grid of its layer, or by itself
        assert theirs.basis.grid.equal(ours.basis.grid) == (kind == 'average' or theirs is model.teacher.conv)
