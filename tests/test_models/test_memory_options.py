"""What saves memory or time changes no result: with_cp, channels_last, SyncBN, gradient accumulation, bfloat16."""

import copy

import pytest
import torch
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.testing import assert_close

from rkan_mm.models import RKANBlock, RKANet
from rkan_mm.models.layers.recompute import with_checkpoint
from rkan_mm.models.ops import has_hooks, is_watched

RESNET = dict(type='mmdet.ResNet', depth=18, base_channels=16, stem_channels=16)


def trained(model, x):
    """Loss, gradients and buffers after a training step."""
    outs = model(x)
    loss = sum(out.square().mean() for out in (outs if isinstance(outs, tuple) else (outs,)))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}, dict(
        model.named_buffers())


@pytest.mark.parametrize('settings', [dict(last=True), dict(shortcut=True, norm_cfg=dict(type='GN', num_groups=4)),
                                      dict(last=True, basis=dict(type='BSpline'))])
@pytest.mark.parametrize('needs_grad', [True, False])
def test_checkpointed_blocks_learn_the_same(settings, needs_grad):
    block = RKANBlock(16, 32, stride=2, **settings)
    again = copy.deepcopy(block)
    again.with_cp = True
    x = torch.randn(3, 16, 12, 12)
    a, b = (x.clone().requires_grad_(needs_grad) for _ in range(2))
    assert_close(trained(again, b), trained(block, a), rtol=0, atol=0)
    assert_close(b.grad, a.grad, rtol=0, atol=0)
    if 'norm_cfg' not in settings:
        assert again.norm1.num_batches_tracked == 1
        assert again.norm1.momentum == block.norm1.momentum


def kept_bytes(model, x):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    assert out.requires_grad
    return sum(kept.values())


def test_checkpointed_blocks_keep_less():
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    plain, checkpointed = (RKANBlock(32, 32, last=True, with_cp=with_cp) for with_cp in (False, True))
    assert kept_bytes(checkpointed, x) < kept_bytes(plain, x) / 4


@pytest.mark.parametrize('register', [
    lambda act, hook: act.register_forward_hook(hook), lambda act, hook: register_module_forward_hook(hook)],
    ids=['one', 'all'])
def test_a_hook_that_comes_or_goes_before_the_backward_pass(register, request):
    """Else other tensors would be saved than in the forward pass, and PyTorch would refuse them."""
    act, seen = nn.SiLU(), []

    def function(x):
        seen.append((has_hooks(act), is_watched(act)))
        return act(x)

    block = nn.ModuleList([act])
    handle = register(act, lambda *_: None)
    try:
        y = with_checkpoint(block, function, torch.rand(3, requires_grad=True))
    finally:
        handle.remove()
    y.sum().backward()
    y = with_checkpoint(block, function, torch.rand(3, requires_grad=True))
    handle = register(act, lambda *_: None)
    try:
        y.sum().backward()
    finally:
        handle.remove()
    assert seen == [('one' in request.node.name, True)] * 2 + [(False, False)] * 2


def test_with_cp_of_a_rkanet():
    model = RKANet(RESNET, stages=('layer3', 'layer4'), with_cp=True)
    plain = RKANet(RESNET, stages=('layer3', 'layer4'))
    plain.load_state_dict(model.state_dict())
    assert all(bridge.block.with_cp for bridge in model.bridges.values())
    x = torch.randn(2, 3, 64, 64)
    assert_close(trained(model, x), trained(plain, x), rtol=0, atol=0)


def test_channels_last_changes_no_output():
    model = RKANet(RESNET).train()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64)
    (loss, grads, buffers), theirs = trained(other, x), trained(model, x)
    outs = other.eval()(x)
    assert outs[-1].is_contiguous(memory_format=torch.channels_last)
    assert_close((loss, buffers), (theirs[0], theirs[2]), rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        if grad is not None:
            assert_close(grad, theirs[1][name], rtol=1e-3, atol=1e-4, check_stride=False)


def test_sync_bn_reaches_the_blocks():
    model = convert_sync_batchnorm(RKANet(RESNET), 'torch')
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert any('bridges' in name and isinstance(module, nn.SyncBatchNorm) for name, module in model.named_modules())


def test_accumulated_gradients_are_those_of_the_larger_batch():
    block = RKANBlock(8, 8, norm_cfg=dict(type='GN', num_groups=4))
    x = torch.randn(4, 8, 6, 6)
    weights = []
    for parts in (1, 2):
        model = copy.deepcopy(block)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=parts)
        wrapper.initialize_count_status(model, 0, parts)
        for part in x.chunk(parts):
            with wrapper.optim_context(model):
                loss = model(part).square().mean()
            wrapper.update_params(loss)
        weights.append(dict(model.named_parameters()))
    assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights[0]['reduce.weight'], block.reduce.weight)
