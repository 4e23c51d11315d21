"""KAN layers and RKANets in torch's own wrappers for several processes, here in one."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from mmengine.runner import Runner
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from rkan_mm.engine import KANGridUpdateHook, KANRegularizationHook
from rkan_mm.models import KANConv2d, KANLinear, RKANBlock, RKANet, SharedKANConv2d, prune

SIZE = functools.partial(size_based_auto_wrap_policy, min_num_params=50)


@pytest.fixture(autouse=True)
def group(tmp_path):
    dist.init_process_group('gloo', store=dist.FileStore(str(tmp_path / 'store'), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def layers():
    return nn.Sequential(
        KANConv2d(3, 4, 3, memory='low'), SharedKANConv2d(3, basis=dict(type='BSpline')),
        KANConv2d(4, 20, 3, stride=4, basis=dict(type='GaussianRBF', trainable_grid=True, trainable_width=True)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), KANLinear(20, 3, with_scaler=True),
        KANLinear(3, 3, basis=dict(type='Rational')))


def net():
    backbone = dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8)
    return RKANet(backbone, ('layer3', 'layer4'), norm_eval=True)


def fsdp(model, **args):
    return FullyShardedDataParallel(model, device_id=torch.device('cpu'), **args)


def fsdp2(model):
    mesh = init_device_mesh('cpu', (1,))
    for each in reversed(list(model.modules())):  # the inner ones first
        if isinstance(each, (KANConv2d, KANLinear, SharedKANConv2d, RKANBlock)) or type(each).__name__ == 'BasicBlock':
            fully_shard(each, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = dict(
    ddp=DistributedDataParallel, static=lambda m: DistributedDataParallel(m, static_graph=True), fsdp=fsdp,
    units=lambda m: fsdp(m, auto_wrap_policy=SIZE), fsdp2=fsdp2,
    original=lambda m: fsdp(m, auto_wrap_policy=SIZE, use_orig_params=True))


def last(y):
    return y[-1] if isinstance(y, tuple) else y


@pytest.mark.parametrize('build', [layers, net], ids=['layers', 'rkanet'])
@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_trains_as_the_plain_model(build, wrapper):
    plain, x = build(), torch.rand(2, 3, 64, 64)
    plain.train()
    model = WRAPPERS[wrapper](copy.deepcopy(plain))
    for each in (plain, model):
        optimizer = torch.optim.SGD(each.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            last(each(x)).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        assert_close(last(model(x)), last(plain(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_converted_as_a_whole(wrapper):
    model, x = layers(), torch.rand(2, 3, 64, 64)
    prune(model, 0.1)
    expected = model(x)
    model = WRAPPERS[wrapper](model).double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert_close(model(x.double()).float(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('wrapper', ['fsdp', 'units', 'fsdp2'])
def test_built_on_the_meta_device(wrapper):
    with torch.device('meta'):
        model = layers()
    model = WRAPPERS[wrapper](model)
    if wrapper == 'fsdp2':
        model.to_empty(device='cpu')
        for each in model.modules():
            if hasattr(each, 'reset_parameters'):
                each.reset_parameters()
    y = model(torch.rand(2, 3, 64, 64))
    y.sum().backward()
    assert y.isfinite().all()


def test_in_lower_precision():
    model = layers()
    x = torch.rand(2, 3, 64, 64)
    expected = model(x)
    half = MixedPrecision(param_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
    assert_close(fsdp(model, mixed_precision=half)(x).float(), expected, rtol=0.1, atol=0.1)


def runner_of(model):
    runner = object.__new__(Runner)
    runner.model, runner._hooks = model, []
    return runner


@pytest.mark.parametrize(('hook', 'wrapper'), [
    (KANGridUpdateHook(), 'fsdp'), (KANGridUpdateHook(), 'units'), (KANGridUpdateHook(), 'original'),
    (KANGridUpdateHook(), 'fsdp2'), (KANRegularizationHook(l1=1.0), 'units'), (KANRegularizationHook(l1=1.0), 'fsdp2')])
def test_hooks_that_need_whole_coefficients_refuse(hook, wrapper):
    """Of units that are not whole the grid update would be lost, and the penalty end the process."""
    runner = runner_of(WRAPPERS[wrapper](nn.Sequential(layers())))
    with pytest.raises(ValueError, match=f'{type(hook).__name__}: it needs the whole coefficients .* FSDP shards them'):
        hook.before_train(runner)
