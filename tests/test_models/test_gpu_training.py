"""Training on a GPU, in the ways in which PyTorch does it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from rkan_mm.benchmarks import steps
from rkan_mm.benchmarks.timing import Running
from rkan_mm.models import KANConv2d, KANLinear, RKANet, prune

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures('without_tf32')]
CLASSIFIER = dict(type='mmpretrain.ImageClassifier', neck=dict(type='mmpretrain.GlobalAveragePooling'),
                  head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=2048))


def net(depth: int = 18, norm: str = 'BN') -> RKANet:
    return RKANet(dict(type='mmpretrain.ResNet', depth=depth, norm_cfg=dict(type=norm)))


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    out = model(x)
    sum(y.float().square().mean() for y in (out if isinstance(out, tuple) else (out,))).backward()
    return [p.grad.clone() for p in model.parameters()]


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    norm = torch.stack([t.double().norm() for t in expected]).norm()
    error = torch.stack([(a.double() - b.double()).norm() for a, b in zip(found, expected, strict=True)]).norm()
    assert error <= tolerance * norm, f'relative error {error / norm:.1e}'


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_the_net_of_the_demo_learns_under_amp(dtype, root):
    """Fifty iterations on two pictures, with the GradScaler of mmengine; mmcv's RoIAlign has no bfloat16."""
    pytest.importorskip('mmcv._ext', reason='needs the compiled ops of mmcv')
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
    cfg = Config.fromfile(root / 'configs/mask-rcnn_rkanet18_fpn_shapes.py')
    model = steps.build(cfg).cuda().train()
    for module in model.modules():
        if dtype == 'bfloat16' and isinstance(module, BaseRoIExtractor):
            module.register_forward_pre_hook(lambda _, args: ([map.float() for map in args[0]], *args[1:]))
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='AmpOptimWrapper', dtype=dtype))
    data = steps.batch(cfg, 2, (128, 128))
    losses = [model.train_step(data, wrapper)['loss'].item() for _ in range(50)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), losses


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
def test_torch_compile_of_a_training_step(dtype, monkeypatch):
    """Our kernels run in it. Rounding decides on which side of a ReLU a number is: gradients differ by more than it."""
    from rkan_mm.models.ops import shared_polynomial_conv_triton as kernels
    model, x, forward, calls = net(50).cuda(), torch.randn(8, 3, 96, 96, device='cuda'), kernels.forward, []
    with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
        expected = gradients(copy.deepcopy(model), x)
        compiled = torch.compile(model)
        gradients(compiled, x)
        monkeypatch.setattr(kernels, 'forward', lambda *args: calls.append(1) or forward(*args))
        assert_near(gradients(compiled, x), expected, 3e-2 if dtype == torch.float32 else 0.2)
    assert len(calls) == 2


@pytest.mark.parametrize('training', [False, True])
def test_a_cuda_graph(training):
    model, x = net().cuda().train(training), torch.randn(2, 3, 64, 64, device='cuda')
    results = []

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(training):
            y = model(x)[-1]
            if training:
                y.square().mean().backward()
        results[:] = [y.detach(), *(p.grad for p in model.parameters() if training)]

    step()  # checks the kernels, which a capture cannot
    replay = Running('cuda', cuda_graph=True).captured(step)
    captured = list(results)
    x.normal_()
    replay()
    found = [t.clone() for t in captured]
    step()
    assert_near(found, results, 1e-4)


def test_channels_last():
    model, x = net().cuda(), torch.randn(8, 3, 96, 96, device='cuda')
    last, moved = copy.deepcopy(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    found, expected = last(moved)[-1], model(x)[-1]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_near([found], [expected], 1e-4)
    assert_near(gradients(last, moved), gradients(model, x), 3e-2)


LAYERS = dict(conv=(lambda: KANConv2d(4, 8, 3, padding=1), (2, 4, 16, 16)),
              linear=(lambda: KANLinear(16, 8, basis=dict(type='BSpline')), (200, 16)),
              gaussian=(lambda: KANLinear(16, 8, basis=dict(type='GaussianRBF', per_channel=True)), (200, 16)))


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('name', LAYERS)
def test_grids_move_and_grow(name, amp):
    build, shape = LAYERS[name]
    layer, x = build().cuda(), 0.9 * torch.rand(shape, device='cuda')
    with torch.autocast('cuda', torch.float16, enabled=amp), torch.no_grad():
        before = layer(x)
        layer.update_grid(x)
        moved = layer(x)
        layer.refine_grid(10)
        refined = layer(x)
    assert all(p.isfinite().all() for p in (*layer.parameters(), *layer.buffers()))
    splines = 'gaussian' not in name
    assert_near([moved, refined], [before, before], (2e-2 if amp else 1e-2) if splines else 0.2)


def test_ddp_with_nccl_and_sync_bn(deterministic, tmp_path):
    """One process: the gradients are those of the plain model."""
    from torch import distributed
    if not distributed.is_nccl_available():
        pytest.skip('this PyTorch has no NCCL')
    x = torch.randn(4, 3, 64, 64, device='cuda')
    plain = net().cuda()
    expected = gradients(plain, x)
    distributed.init_process_group('nccl', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1)
    try:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
        assert any(isinstance(module, nn.SyncBatchNorm) for module in model.bridges.modules())
        found = gradients(nn.parallel.DistributedDataParallel(model, device_ids=[0]), x)
    finally:
        distributed.destroy_process_group()
    assert_near(found, expected, 1e-4)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, first: int,
          last: int) -> None:
    for iteration in range(first, last):
        generator = torch.Generator('cuda').manual_seed(iteration)
        x = torch.randn(4, 3, 64, 64, device='cuda', generator=generator)
        with torch.autocast('cuda', torch.float16):
            loss = model(x)[-1].float().square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def test_pruning_and_grids_in_a_deterministic_run(deterministic):
    model, x = nn.Sequential(KANLinear(8, 16), KANLinear(16, 4)).cuda(), torch.randn(64, 8, device='cuda')
    model[0].update_grid(x, uniform=0.5)
    model[0].refine_grid(10)
    assert prune(model, 0.5, lambda: model(x)) == 0.5
    assert all(g.isfinite().all() for g in gradients(model, x))


def test_resumed_training_ends_at_the_same_bits(deterministic, tmp_path):
    """Deterministic, and with all that training keeps in the checkpoint."""
    start = net().cuda()

    def begin(state: dict | None = None):
        model = copy.deepcopy(start)
        parts = model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), torch.amp.GradScaler('cuda')
        for name, part in zip(('model', 'optimizer', 'scaler'), parts, strict=True):
            if state:
                part.load_state_dict(state[name])
        return parts

    through, again = begin(), begin()
    train(*through, 0, 6)
    train(*again, 0, 3)
    names = 'model', 'optimizer', 'scaler'
    torch.save({name: part.state_dict() for name, part in zip(names, again, strict=True)}, tmp_path / 'half.pth')
    resumed = begin(torch.load(tmp_path / 'half.pth', map_location='cuda', weights_only=True))
    train(*resumed, 3, 6)
    assert all(a.equal(b) for a, b in zip(through[0].state_dict().values(), resumed[0].state_dict().values(),
                                          strict=True))


@pytest.mark.parametrize('expansion', [None, 4])
def test_amp_keeps_a_classifier_finite(expansion):
    """In half precision, whose largest number is 65504."""
    backbone = dict(type='rkan_mm.RKANet', backbone=dict(type='mmpretrain.ResNet', depth=50),
                    block=dict(type='RKANBlock', expansion=expansion))
    model = MMENGINE_MODELS.build(dict(CLASSIFIER, backbone=backbone)).cuda().train()
    with torch.autocast('cuda', torch.float16):
        logits = model.head(model.extract_feat(torch.randn(4, 3, 64, 64, device='cuda')))
    assert logits.isfinite().all()
