"""A kernel for each group of channels: the same as layers that each see their channels alone."""

import pytest
import torch
from torch.testing import assert_close

from rkan_mm.models import RKANBlock
from rkan_mm.models.layers import GroupedKANConv2d, SharedKANConv2d, prune


def apart(conv, x):
    return torch.cat([part(each) for part, each in zip(conv, x.chunk(len(conv), 1), strict=True)], 1)


@pytest.mark.parametrize('groups', [1, 3, 12])
@pytest.mark.parametrize('args', [
    dict(), dict(with_base=False, stride=2), dict(normalization='none', basis=dict(type='Legendre', degree=2)),
    dict(kernel_size=7, padding=3, with_scaler=False), dict(normalization='min-max'),
    dict(basis=dict(type='GaussianRBF')), dict(base_act_cfg=dict(type='SiLU')),
], ids=str)
def test_each_group_has_a_layer_of_its_own(groups, args):
    conv = GroupedKANConv2d(12, groups, **{'kernel_size': 3, 'padding': 1, **args})
    x = torch.randn(2, 12, 9, 8)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [form(each) for form, each in zip((conv, lambda x: apart(conv, x)), inputs, strict=True)]
    assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(outs[0])
    parameters = list(conv.parameters())
    for mine, theirs in zip(*(torch.autograd.grad((out * weight).sum(), [each, *parameters])
                              for out, each in zip(outs, inputs, strict=True)), strict=True):
        assert_close(mine, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-4)
    assert_close(conv(x[0]), conv(x)[0], atol=1e-5, rtol=1e-4)  # without a batch


def test_pruned_functions_stay_pruned_and_hooks_see_every_part():
    conv = GroupedKANConv2d(6, 3, kernel_size=3, padding=1)
    x = torch.randn(2, 6, 5, 5)
    prune(conv, 0.5)
    assert all((part.mask == 0).any() for part in conv)
    expected = apart(conv, x)
    assert_close(conv(x), expected, atol=1e-5, rtol=1e-4)
    seen = []
    for part in conv:
        part.register_forward_hook(lambda module, args, out: seen.append(out))
    assert_close(conv(x), expected)
    assert_close(torch.cat(seen, 1), expected)


def test_backward_hooks_and_replaced_forwards_of_parts_are_called():
    conv, x, seen = GroupedKANConv2d(4, 2, kernel_size=3, padding=1), torch.randn(2, 4, 5, 5, requires_grad=True), []
    conv[0].register_full_backward_hook(lambda module, grads, _: seen.append('backward'))
    conv[1].forward = lambda x: seen.append('forward') or 0 * x
    out = conv(x)
    out.sum().backward()
    assert seen == ['forward', 'backward']
    assert not out[:, 2:].any()


def test_groups_that_do_not_divide_the_channels():
    for groups in (0, 5):
        with pytest.raises(ValueError, match=f'groups must divide the 12 channels, got {groups}'):
            GroupedKANConv2d(12, groups)


@pytest.mark.parametrize(('groups', 'kernels'), [(1, (1, 1)), (4, (4, 4)), ('channels', (8, 12))])
def test_groups_of_a_block(groups, kernels):
    block = RKANBlock(16, 12, 2, last=True, groups=groups)
    counts = [1 if isinstance(conv, SharedKANConv2d) else len(conv) for conv in (block.kan1, block.kan2)]
    assert tuple(counts) == kernels
    shared = sum(p.numel() for p in RKANBlock(16, 12, 2, last=True).parameters())
    assert sum(p.numel() for p in block.parameters()) == shared + 54 * (kernels[0] - 1) + 45 * (kernels[1] - 1)
    before = [p.clone() for p in block.parameters() if p.dim() > 1]
    block.init_weights()
    assert not any(torch.equal(*pair) for pair in zip(before, (p for p in block.parameters() if p.dim() > 1),
                                                      strict=True) if pair[0].std() and (pair[0] != 1).any())
    assert block(torch.rand(2, 16, 6, 6)).shape == (2, 12, 3, 3)
    with pytest.raises(ValueError, match='groups must divide the 8 channels, got 3'):
        RKANBlock(16, 12, groups=3)
