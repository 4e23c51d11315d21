"""Derivatives of derivatives, however the input lies in memory and whatever autocast does by then."""

import copy

import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close

from rkan_mm.models import GroupedKANConv2d, KANConv2d, KANConvTranspose2d, KANLinear, RKANBlock, SharedKANConv2d

IMAGES = 2, 2, 5, 6
LAYERS = dict(
    linear=(lambda: KANLinear(4, 3), (5, 4)),
    polynomials=(lambda: KANLinear(4, 3, basis=dict(type='Legendre'), with_scaler=True), (5, 4)),
    low=(lambda: KANLinear(4, 3, memory='low'), (5, 4)),
    spline_conv=(lambda: KANConv2d(2, 3, 3), IMAGES),
    low_conv=(lambda: KANConv2d(2, 3, 3, memory='low'), IMAGES),
    expand=(lambda: KANConv2d(2, 17, 3, basis=dict(type='GaussianRBF')), IMAGES),
    each_a_grid=(lambda: KANLinear(4, 3, basis=dict(type='RSWAF', per_channel=True)), (5, 4)),
    transposed=(lambda: KANConvTranspose2d(2, 3, 3), IMAGES),
    shared=(lambda: SharedKANConv2d(3, padding=1), IMAGES),
    grouped=(lambda: GroupedKANConv2d(2, 2, kernel_size=3), IMAGES),
    block=(lambda: RKANBlock(2, 4, last=True).eval(), IMAGES),
    block_with_cp=(lambda: RKANBlock(2, 4, last=True, with_cp=True).eval(), IMAGES),
)
every_layer = pytest.mark.parametrize('name', LAYERS)


def build(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    return layer(), torch.randn(shape)


def layouts(x):
    if x.dim() == 2:
        return [x, x.t().contiguous().t()]
    return [x, x.contiguous(memory_format=torch.channels_last), x.transpose(0, 1).contiguous().transpose(0, 1),
            x.mT.contiguous().mT, x.repeat(1, 1, 1, 2)[..., :x.shape[3]]]


def penalty(layer, x):
    """Gradients of a gradient penalty over the input and all parameters."""
    inputs = [x.requires_grad_(), *layer.parameters()]
    first = torch.autograd.grad(layer(x).square().mean(), inputs, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)


@every_layer
def test_of_kernels_as_in_double_precision(name):
    layer, x = build(name)
    expected = penalty(copy.deepcopy(layer).double(), x.double())
    for like in layouts(x):
        found = penalty(layer, like.detach())
        for ours, right in zip(found, expected, strict=True):
            assert_close(ours, right.float(), rtol=1e-3, atol=1e-4 * (1 + right.abs().max().item()))


@every_layer
def test_hooks_on_tensors_run_once(name):
    """As those that reverse or clip gradients, where these can be differentiated again."""
    found = []
    for again in (False, True):
        layer, x = build(name)
        leaf, times = x.requires_grad_(), []
        inputs = [leaf * 1.0, *layer.parameters()]
        for t in (leaf, *inputs):
            t.register_hook(lambda grad, times=times: times.append(1) or -2 * grad)
        grads = torch.autograd.grad(layer(inputs[0]).square().mean(), [leaf, *inputs], create_graph=again)
        found.append([len(times), *(grad.detach() for grad in grads)])
    assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', ['spline_conv', 'expand', 'shared'])
def test_first_derivatives_that_autocast_comes_upon(name):
    """PyTorch's own backward pass of a convolution does not follow it."""
    layer, x = build(name)
    loss = layer(x.requires_grad_()).square().sum()
    expected, = torch.autograd.grad(loss, x, create_graph=True)
    with torch.autocast('cpu', torch.bfloat16):
        found, = torch.autograd.grad(loss, x, create_graph=True)
    assert_close(found, expected)


def of_functional_call(layer, x, grids):
    return functional_call(layer, grids, (x,))


def of_before_it_was_laid(layer, x, grids):
    before = copy.deepcopy(layer.state_dict())
    layer.load_state_dict({**before, **grids})
    y = layer(x)
    layer.load_state_dict(before, assign=True)
    return y


@pytest.mark.parametrize('name', ['linear', 'spline_conv', 'expand', 'transposed', 'each_a_grid'])
@pytest.mark.parametrize('call', [of_functional_call, of_before_it_was_laid])
def test_of_the_grid_that_there_was(name, call):
    layer, x = build(name)
    grids = {key: (0.7 if key.endswith('inv_width') else 1.4) * value + 0.1 for key, value in layer.named_buffers()}
    like = copy.deepcopy(layer)
    like.load_state_dict({**layer.state_dict(), **grids})
    found, expected = [], []
    for each, inputs, y in ((found, [x.requires_grad_()], call(layer, x, grids)), (expected, [x], like(x))):
        each += torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        each += torch.autograd.grad(each[0].square().sum(), inputs)
    assert_close(found, expected, rtol=1e-3, atol=1e-4 * (1 + expected[1].abs().max().item()))
