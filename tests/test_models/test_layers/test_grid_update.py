"""Grids that follow the data, in convolutions and linear layers."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rkan_mm.models import KANConv1d, KANConv2d, KANConv3d, KANConvTranspose2d, KANLinear

LAYERS = {
    'conv1d': (lambda **a: KANConv1d(4, 6, 3, padding=1, **a), (8, 4, 40)),
    'conv2d': (lambda **a: KANConv2d(4, 6, 3, padding=1, groups=2, **a), (8, 4, 9, 8)),
    'conv2d-no-padding': (lambda **a: KANConv2d(4, 3, (1, 2), bias=False, **a), (8, 4, 9, 8)),
    'conv3d': (lambda **a: KANConv3d(2, 3, 2, **a), (4, 2, 5, 6, 5)),
    'transposed': (lambda **a: KANConvTranspose2d(4, 6, 2, 2, groups=2, **a), (8, 4, 6, 6)),
    'linear': (lambda **a: KANLinear(4, 6, **a), (300, 4)),
    'linear-tokens': (lambda **a: KANLinear(4, 6, normalization='tanh', **a), (20, 15, 4)),
}
layers = pytest.mark.parametrize('kind', LAYERS)
GRIDS = ['BSpline', 'GaussianRBF', 'RSWAF', 'ReLUKAN', 'Wavelet']
grids = pytest.mark.parametrize('basis', GRIDS)


def rough(layer: nn.Module) -> nn.Module:
    """Functions at random, which use their grid to the full, in every part of the layer."""
    for parameter in (layer.basis_weight, layer.scaler):
        if parameter is not None:
            nn.init.normal_(parameter)
    return layer


def change(layer: nn.Module, x: torch.Tensor, action) -> float:
    before = layer(x)
    action(layer)
    after = layer(x)
    assert after.isfinite().all()
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    return ((after - before).norm() / before.norm()).item()


@layers
@grids
@pytest.mark.parametrize('with_scaler', [True, False])
def test_growth_by_a_fifth_keeps_the_outputs(kind, basis, with_scaler):
    make, shape = LAYERS[kind]
    layer = rough(make(basis=dict(type=basis, grid_range=(-1, 1)), with_scaler=with_scaler))
    size = layer.basis.grid_size
    x = 1.2 * layer.basis.interior().max() * (2 * torch.rand(shape) - 1)
    assert change(layer, x, lambda layer: layer.update_grid(x, grow=True)) < 1e-3
    if layer.normalization == 'none':
        assert layer.basis.grid_size > size
        low, high = layer.basis.interior()[:, 0], layer.basis.interior()[:, -1]
        assert (low <= x.min() + 1e-6).all()
        assert (high >= x.max() - 1e-6).all()
    size = layer.basis.grid_size
    assert not layer.update_grid(x, grow=True)  # all inside
    assert layer.basis.grid_size == size


@layers
def test_same_number_of_intervals_keeps_smooth_functions(kind):
    """Where the old functions are smooth over the data, splines of as many intervals follow them closely."""
    make, shape = LAYERS[kind]
    layer = make(basis=dict(type='BSpline', grid_size=16, grid_range=(-1, 1)), with_base=False)
    middles = layer.basis._middles()[0][0]
    shape_of_sine = (-1, *[1] * (layer.basis_weight.dim() - 3))
    layer.basis_weight.data = (middles * 2.5).sin().view(shape_of_sine).expand_as(layer.basis_weight).contiguous()
    x = 0.8 * (2 * torch.rand(shape) - 1)
    assert change(layer, x, lambda layer: layer.update_grid(x)) < 1e-3
    assert layer.basis.grid_size == 16
    assert layer.basis.interior().max() < 0.9


@layers
@pytest.mark.parametrize('order', [1, 2, 3])
@pytest.mark.parametrize('factor', [2, 3])
def test_refinement_by_a_multiple_is_exact(kind, order, factor):
    make, shape = LAYERS[kind]
    layer = rough(make(basis=dict(type='BSpline', order=order, grid_range=(-1, 1)), with_scaler=True))
    x = 2 * torch.rand(shape) - 1  # inside; the tails beyond the ends are another length
    others = {name: value.clone() for name, value in layer.state_dict().items()
              if name not in ('basis_weight', 'basis.grid')}
    assert change(layer, x, lambda layer: layer.refine_grid(5 * factor)) < 1e-6
    assert layer.basis_weight.shape[2] == 5 * factor + order
    for name, value in others.items():
        assert_close(layer.state_dict()[name], value, rtol=0, atol=0)


def test_bells_are_counted_by_the_intervals_on_which_they_were_asked_for():
    def made(size, order=3):
        return KANLinear(4, 3, basis=dict(type='ReLUKAN', grid_size=size, order=order))

    for size in (1, 6, 8, 10):
        layer = made(5)
        assert layer.basis.grid_size == 5
        layer.refine_grid(size)
        assert layer.basis.grid_size == size
        assert layer.basis.num_functions == made(size).basis.num_functions == size + 3
        assert layer.basis_weight.shape == made(size).basis_weight.shape
    x = 2 * torch.rand(50, 4) - 1
    assert change(made(5), x, lambda layer: layer.refine_grid(10)) < 0.05
    layer, fresh = made(5), made(7)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.basis.grid_size == 5
    fresh.reset_parameters()
    assert fresh.basis.num_functions == 8
    layer.update_grid(3 * x, grow=True)
    assert layer.basis.num_functions == layer.basis.grid_size + 3
    assert made(2, order=0).basis.num_functions == 2
    with pytest.raises(ValueError, match='ReLUKAN: grid_size must be an integer of at least 2, got 1'):
        made(1, order=0)


@grids
def test_refinement_of_other_sizes_is_close(basis):
    layer = KANConv2d(3, 4, 3, basis=dict(type=basis, grid_range=(-1, 1)))
    x = 2 * torch.rand(4, 3, 12, 12) - 1
    assert change(layer, x, lambda layer: layer.refine_grid(2 * layer.basis.grid_size + 1)) < 0.1


@layers
@grids
@pytest.mark.parametrize('uniform', [1.0, 0.5, 0.0])
@pytest.mark.parametrize('background', ['constant', 'mostly', 'none'])
def test_never_nan(kind, basis, uniform, background):
    """Constant images, and those with mostly the same background."""
    make, shape = LAYERS[kind]
    layer = rough(make(basis=dict(type=basis)))
    x = torch.rand(shape)
    if background != 'none':
        x[torch.rand(shape) < (1.1 if background == 'constant' else 0.8)] = -1.0
    for _ in range(3):
        change(layer, x, lambda layer: layer.update_grid(x, uniform=uniform))
    out = layer(x)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert (layer.basis.interior().diff(dim=1) > 0).all()


def test_quantiles_follow_the_data():
    layer = KANLinear(1, 1, basis=dict(type='BSpline', grid_size=4))
    x = torch.cat([torch.linspace(0, 1, 900), torch.linspace(1, 10, 100)])[:, None]
    layer.update_grid(x, uniform=0.0)
    assert not layer.basis.uniform
    assert_close(layer.basis.interior()[0, 1:4], x.unique().quantile(torch.tensor([0.25, 0.5, 0.75])), rtol=0, atol=0.2)
    layer.update_grid(x, uniform=1.0, margin=0.0)
    assert layer.basis.uniform
    assert_close(layer.basis.interior()[0], torch.linspace(0, 10, 5))


def test_each_channel_has_its_own_range():
    layer = KANConv2d(2, 3, 1)
    x = torch.stack([torch.rand(2, 4, 4), 5 + 3 * torch.rand(2, 4, 4)], 1)
    layer.update_grid(x, margin=0.0)
    assert_close(layer.basis.interior()[:, [0, -1]], torch.stack([x.amin((0, 2, 3)), x.amax((0, 2, 3))], 1))


def test_padded_zeros_count():
    layer = KANConv2d(1, 1, 3, padding=1)
    layer.update_grid(torch.rand(2, 1, 6, 6) + 3, margin=0.0)
    assert_close(layer.basis.interior()[0, 0].item(), 0.0)


def test_only_when_enough_lies_outside():
    layer = KANLinear(2, 2)
    x = torch.rand(1000, 2) * 0.9
    x[:4] = 3
    before = copy.deepcopy(layer.state_dict())
    assert not layer.update_grid(x, outside=0.01)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert layer.update_grid(x, outside=0.001)
    assert not layer.update_grid(x[:0])


def test_a_norm_over_all_processes_asks_no_other(tmp_path):
    """The others do not look at their samples with rank 0, which would wait for them for ever."""
    x, made = 5 * torch.randn(4, 4, 5, 5), []
    for convert in (nn.Sequential.eval, nn.SyncBatchNorm.convert_sync_batchnorm):
        torch.manual_seed(0)
        made.append(convert(nn.Sequential(KANConv2d(4, 4, 1, normalization=dict(type='BN')))).train())
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:  # on a CPU a SyncBN that asks the others is an error
        assert all(net[0].update_grid(x) for net in made)
    finally:
        torch.distributed.destroy_process_group()
    assert isinstance(made[1][0].norm, nn.SyncBatchNorm)
    assert_close(made[1].state_dict(), made[0].state_dict())


def test_norm_before_the_basis_keeps_its_statistics():
    layer = KANConv2d(2, 2, 1, normalization=dict(type='BN'))
    before = copy.deepcopy(layer.norm.state_dict())
    layer.train().update_grid(5 + torch.rand(4, 2, 5, 5))
    assert_close(layer.norm.state_dict(), before, rtol=0, atol=0)
    assert layer.basis.interior().max() < 3  # of what is normalised


@layers
@grids
def test_checkpoint_of_an_updated_and_refined_grid(kind, basis, tmp_path):
    make, shape = LAYERS[kind]
    layer, x = rough(make(basis=dict(type=basis))), torch.rand(shape) * 3
    layer.update_grid(x, uniform=0.3)
    layer.refine_grid(layer.basis.grid_size * 2)
    torch.save(layer.state_dict(), tmp_path / 'layer.pth')
    fresh = make(basis=dict(type=basis))
    parameter = fresh.basis_weight
    fresh.load_state_dict(torch.load(tmp_path / 'layer.pth', weights_only=True))
    assert fresh.basis_weight is parameter  # an optimizer has it
    assert fresh.basis.grid_size == layer.basis.grid_size
    assert_close(fresh(x), layer(x))


@layers
def test_order_of_channels(kind):
    make, _ = LAYERS[kind]
    weight = torch.randn_like(make().basis_weight)
    layer = make()
    channels = layer.by_channel(weight)
    assert channels.shape[:2] == (layer.num_inputs, weight.shape[2])
    assert_close(layer.from_channel(channels), weight, rtol=0, atol=0)
    x = torch.zeros(LAYERS[kind][1])  # only the functions of channel 1 are left: the output depends on it alone
    channels[[i for i in range(layer.num_inputs) if i != 1]] = 0
    layer.basis_weight.data = layer.from_channel(channels).contiguous()
    layer.weight.data.zero_()
    moved = x.clone()
    moved.movedim(layer.channel_dim, 0)[0] = 0.7
    assert_close(layer(moved), layer(x))
    moved.movedim(layer.channel_dim, 0)[1] = 0.7
    assert not layer(moved).allclose(layer(x))


@pytest.mark.parametrize(('call', 'error', 'message'), [
    (lambda: KANConv2d(1, 1, 1, basis=dict(type='Chebyshev')).update_grid(torch.rand(1, 1, 2, 2)), TypeError,
     'KANConv2d.update_grid: basis Chebyshev has no grid'),
    (lambda: KANLinear(1, 1, basis=dict(type='Fourier')).refine_grid(3), TypeError,
     'KANLinear.refine_grid: basis Fourier has no grid'),
    (lambda: KANLinear(1, 1).refine_grid(0), ValueError, 'KANLinear: grid_size must be at least 1, got 0'),
])
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize('per_channel', [False, True])
@pytest.mark.parametrize('options', [{}, dict(grow=True), dict(uniform=0.5)], ids=str)
def test_a_part_of_large_inputs_stands_for_them(per_channel, options):
    """Of each in proportion to its size; the grid lies over all of them."""
    whole = rough(KANConv2d(2, 3, 1, normalization='none', basis=dict(type='BSpline', per_channel=per_channel)))
    part, silent = copy.deepcopy(whole), copy.deepcopy(whole)
    maps = [scale * torch.randn(2, 2, size, size) for size, scale in ((400, 0.3), (200, 0.3), (10, 2.0))]
    maps[0][0, :, 5, 7], maps[1][0, 0, 9] = torch.tensor([-4.0, 6.0]), float('nan')
    drawn = [part.draw(x) for x in maps]
    assert [each.samples.numel() for each in drawn] == [1 << 18, maps[1].numel(), maps[2].numel()]
    assert not silent.update_grid(drawn, outside=0.01)  # as much lies there in the smallest map alone
    assert silent.update_grid(drawn[2:], outside=0.01)
    x = 0.3 * torch.randn(2, 2, 50, 50)
    before = whole(x)
    assert part.update_grid(drawn, **options)
    assert whole.update_grid(maps, **options)
    tolerance = 0.02 if 'uniform' in options else 1e-6
    assert_close(part.basis.interior(), whole.basis.interior(), rtol=0, atol=tolerance)
    assert (part(x) - before).norm() < 1.5 * (whole(x) - before).norm() + 1e-4


@grids
def test_nothing_is_done_that_deterministic_runs_refuse(basis):
    """Of what an update does on a GPU, in any version of PyTorch; this one need not refuse it."""
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function.name().partition('.')[0])
            return function(*args, **(kwargs or {}))

    names = set()
    with Record():
        assert KANLinear(3, 2, basis=dict(type=basis, per_channel=True)).update_grid(3 * torch.rand(50, 3), uniform=0.3)
    assert 'aten::sort' in names
    assert not names & {f'aten::{name}' for name in ('cumsum', 'histc', 'kthvalue', 'median', 'put_', 'bincount')}
