"""What a run shows of its KAN layers, through mmengine's visualizer; the run itself stays what it was."""

import json
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from rkan_mm.engine import KANVisualizationHook
from rkan_mm.engine.visualization_hook import _together
from rkan_mm.inspection import Recorder
from rkan_mm.models import KANConv2d, KANLinear, RKANet
from rkan_mm.models.layers import GroupedKANConv2d


class Images(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(x=torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index)))


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = RKANet(backbone=dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8,
                                             init_cfg=None))
        self.conv = KANConv2d(64, 8, 1)
        self.fc = KANLinear(8, 2, basis=dict(type='Chebyshev'))
        self.idle = KANLinear(2, 2)

    def forward(self, x, mode='tensor'):
        x = self.fc(self.conv(self.backbone(x)[-1]).mean((2, 3)))
        return dict(loss=x.square().mean()) if mode == 'loss' else x


@VISBACKENDS.register_module()
class Noted(BaseVisBackend):
    """Keeps what it is given, as TensorBoard's and WandB's would send it."""

    scalars, images = [], []

    def _init_env(self):
        pass

    @property
    def experiment(self):
        return self

    def add_config(self, config, **kwargs):
        pass

    def add_graph(self, *args, **kwargs):
        pass

    def add_image(self, name, image, step=0, **kwargs):
        self.images.append((name, image.shape, step))

    def add_scalar(self, name, value, step=0, **kwargs):
        self.scalars.append((name, value, step))

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        self.scalars.extend((name, value, step) for name, value in scalar_dict.items())


class Small(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = KANLinear(3, 2, basis=dict(type='Chebyshev'))

    def forward(self, x, mode='tensor'):
        return dict(loss=self.fc(x.mean((2, 3))).square().mean())


def run(folder, hooks=(), model=None, **args) -> Runner:
    Noted.scalars, Noted.images = [], []
    runner = Runner(
        model=model or Model(), work_dir=str(folder), experiment_name='test', default_scope='mmengine',
        train_dataloader=dict(dataset=Images(), batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'),
                              sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=4), randomness=dict(seed=0),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-3)), custom_hooks=list(hooks),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'),
                                                         dict(type='Noted', save_dir=str(folder))]), **args)
    runner.train()
    return runner


def test_every_second_epoch(tmp_path):
    runner = run(tmp_path, [dict(type='KANVisualizationHook', interval=2)])
    names = ['kan-backbone.bridges.layer4.block.kan1', 'kan-backbone.bridges.layer4.block.kan2', 'kan-conv', 'kan-fc']
    assert [(name, step) for name, _, step in Noted.images] == [(name, step) for step in (6, 12) for name in names]
    found = {name for name, value, step in Noted.scalars if name.startswith('kan/')}
    stage = 'backbone.bridges.layer4'
    assert found == {f'kan/{layer}/{what}' for layer in (f'{stage}.block.kan1', f'{stage}.block.kan2', 'conv', 'fc')
                     for what in ('not_straight', 'rms', 'beyond')} | {f'kan/{stage}/branch'}
    assert all(value >= 0 for name, value, _ in Noted.scalars if name.startswith('kan/'))
    pictures = sorted(Path(runner.work_dir).rglob('kan-*_12.png'))
    assert [picture.stem for picture in pictures] == [f'{name}_12' for name in names]
    assert mmcv.imread(str(pictures[0])).std() > 10
    lines = [json.loads(line) for line in next(Path(runner.work_dir).rglob('scalars.json')).read_text().splitlines()]
    assert any('kan/fc/not_straight' in line for line in lines)
    for module in runner.model.modules():
        assert not module._forward_pre_hooks
        assert 'fuse' not in vars(module)


def test_the_run_is_the_same(tmp_path):
    plain, watched = run(tmp_path / 'a'), run(tmp_path / 'b', [dict(type='KANVisualizationHook', num_layers=1)])
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_kernels_of_groups_of_channels_have_their_scalars_together():
    """Else there are three for each of hundreds."""
    torch.manual_seed(0)
    model = nn.Sequential(GroupedKANConv2d(4, 2, kernel_size=3, padding=1), KANConv2d(4, 2, 1))
    with torch.no_grad():
        model[0][1].weight.mul_(3)
    with Recorder(model) as recorder:
        model(torch.randn(2, 4, 8, 8))
    layers = KANVisualizationHook._layers(model, recorder.statistics)
    parts = recorder.statistics['0.0'], recorder.statistics['0.1']
    assert layers == {'0': list(parts), '1': [recorder.statistics['1']]}
    found = _together(layers['0'])
    first, second = (_together([part]) for part in parts)
    assert first['not_straight'] == pytest.approx(parts[0].total_nonlinear_share())
    assert found['rms'] == pytest.approx(((first['rms']**2 + second['rms']**2) / 2)**0.5)
    assert found['beyond'] == pytest.approx((first['beyond'] + second['beyond']) / 2)
    low, high = sorted((first['not_straight'], second['not_straight']))
    assert low <= found['not_straight'] <= high


def test_by_iterations_and_few_layers(tmp_path):
    hook = dict(type='KANVisualizationHook', interval=5, by_epoch=False, num_layers=2, num_functions=3)
    run(tmp_path, [hook])
    assert [(name, step) for name, _, step in Noted.images] == [
        (name, step) for step in (5, 10) for name in ('kan-backbone.bridges.layer4.block.kan1', 'kan-fc')]


def test_of_a_compiled_model(tmp_path, monkeypatch):
    """Which was compiled before the hooks came that look at its layers. Other processes make the same steps."""
    hook, weights = dict(type='KANVisualizationHook', interval=2), []
    for is_main, seen in ((True, [('kan-fc', 6), ('kan-fc', 12)]), (False, [])):
        monkeypatch.setattr('rkan_mm.engine.visualization_hook.is_main_process', lambda is_main=is_main: is_main)
        done = run(tmp_path / str(is_main), [hook], Small(), cfg=dict(compile=dict(backend='eager')))
        assert [(name, step) for name, _, step in Noted.images] == seen
        weights.append(done.model.state_dict())
    assert_close(weights[1], weights[0], rtol=0, atol=0)


def test_under_amp(tmp_path):
    runner, x, found = run(tmp_path), torch.randn(2, 3, 32, 32), []
    for autocast in (False, True):
        Noted.scalars.clear()
        hook = KANVisualizationHook(by_epoch=False, num_layers=1)
        hook.before_train_iter(runner, 0)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            runner.model.eval()(x)
        hook.after_train_iter(runner, 0)
        found.append({name: value for name, value, _ in Noted.scalars})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=0.2, abs=0.02), name


def test_errors(tmp_path):
    with pytest.raises(ValueError, match='KANVisualizationHook: interval must be at least 1, got 0'):
        KANVisualizationHook(interval=0)

    class Runs:
        model = nn.Linear(2, 2)

    with pytest.raises(ValueError, match='KANVisualizationHook: Linear has no KAN layer'):
        KANVisualizationHook().before_train(Runs())
    runner = run(tmp_path, model=Small())
    runner._train_loop = dict(type='IterBasedTrainLoop', max_iters=1)
    with pytest.raises(ValueError, match='by_epoch=True, and a IterBasedTrainLoop has no epochs; give by_epoch=False'):
        KANVisualizationHook().before_train(runner)
