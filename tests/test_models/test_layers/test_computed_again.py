"""What layers compute again for the backward pass is what the forward pass computed, whatever was done in between."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANConvTranspose2d, KANLinear, RKANBlock, SharedKANConv2d

IMAGES, ROWS = (2, 2, 5, 5), (5, 4)
LAYERS = dict(
    linear=(lambda **a: KANLinear(4, 3, **a), ROWS),
    low=(lambda: KANLinear(4, 3, memory='low'), ROWS),
    conv_low=(lambda: KANConv2d(2, 3, 3, memory='low', with_scaler=True), IMAGES),
    transposed_low=(lambda: KANConvTranspose2d(2, 3, 3, memory='low'), IMAGES),
    prelu_low=(lambda: KANLinear(4, 3, memory='low', base_act_cfg=dict(type='PReLU')), ROWS),
    norm_low=(lambda: KANConv2d(2, 3, 3, memory='low', normalization=dict(type='BN')), IMAGES),
    moving_low=(lambda: KANLinear(4, 3, memory='low', basis=dict(type='GaussianRBF', trainable_grid=True)), ROWS),
    rational=(lambda: KANLinear(4, 3, basis=dict(type='Rational')), ROWS),
    rational_low=(lambda: KANLinear(4, 3, basis=dict(type='Rational'), memory='low'), ROWS),
    conv=(lambda: KANConv2d(2, 3, 3, basis=dict(type='Fourier')), IMAGES),
    shared=(lambda: SharedKANConv2d(3, basis=dict(type='BSpline')), IMAGES),
    shared_bias=(lambda: SharedKANConv2d(3, basis=dict(type='GaussianRBF')), IMAGES),
    shared_patches=(lambda: SharedKANConv2d(3, normalization='layer_norm'), IMAGES),
)
every_layer = pytest.mark.parametrize('name', LAYERS)


def build(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    return layer(), torch.randn(shape)


def others(layer):
    return {name: (p + 0.3 * torch.randn_like(p)).detach().requires_grad_() for name, p in layer.named_parameters()}


@every_layer
def test_parameters_of_functional_call(name):
    """As in meta-learning: two sets of fast weights, both losses alive, and the layer's own in between."""
    layer, x = build(name)
    x.requires_grad_()
    sets = [others(layer), others(layer)]
    losses = [functional_call(layer, each, (x,)).square().sum() for each in sets]
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for fast, loss in zip(sets, losses, strict=True):
        found = torch.autograd.grad(loss, [x, *fast.values()])
        like = copy.deepcopy(layer)
        like.load_state_dict({**before, **fast})
        assert_close(found, torch.autograd.grad(like(x).square().sum(), [x, *like.parameters()]))
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def assign(layer):
    layer.load_state_dict({key: 2 * value if 'weight' in key else value for key, value in layer.state_dict().items()},
                          assign=True)


CHANGES = dict(assign=assign, prune=lambda layer: layer.prune(0.5),
               prune_again=lambda layer: layer.keep(torch.rand_like(layer.importance()) > 0.5))


@every_layer
@pytest.mark.parametrize('change', CHANGES)
def test_what_takes_the_place_of_tensors_does_not_reach_an_old_loss(name, change):
    layer, x = build(name)
    if change == 'prune_again':
        layer.prune(0.2)
    inputs = [x.requires_grad_(), *layer.parameters()]
    loss = layer(x).square().sum()
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    CHANGES[change](layer)
    changed = layer(x)
    assert_close(torch.autograd.grad(loss, inputs), expected)
    assert_close(layer(x), changed, rtol=0, atol=0)


@every_layer
def test_weights_stepped_in_place_never_give_another_gradient(name):
    """Of no tensor of the layer, whichever parameter was stepped; the input has none."""
    layer, x = build(name)
    for stepped, parameter in layer.named_parameters():
        inputs = list(layer.parameters())
        loss = layer(x).square().sum()
        expected = torch.autograd.grad(loss, inputs, retain_graph=True)
        with torch.no_grad():
            parameter.mul_(1.5)
        found, said = expected, 'modified by an inplace operation'
        try:
            found = torch.autograd.grad(loss, inputs)
        except RuntimeError as error:
            said = str(error)
        assert 'modified by an inplace operation' in said
        assert_close(found, expected, msg=stepped)


@every_layer
def test_weights_that_are_stepped_as_soon_as_they_have_a_gradient(name):
    """A bias has it before the values are computed again, of which none depends on it."""
    step_each_at_once(*build(name))


@pytest.mark.parametrize('name', ['low', 'conv_low', 'shared_bias'])
def test_a_bias_of_others_that_is_stepped_at_once(name):
    layer, x = build(name)
    register_parametrization(layer, 'bias', nn.Tanh())
    step_each_at_once(layer, x)


def step_each_at_once(layer, x):
    inputs = [x.requires_grad_(), *layer.parameters()]
    expected, found = torch.autograd.grad(layer(x).square().sum(), inputs), {}

    def step(parameter):
        found[parameter], parameter.grad = parameter.grad, None
        with torch.no_grad():
            parameter.mul_(1.5)

    for parameter in inputs:
        parameter.register_post_accumulate_grad_hook(step)
    layer(x).square().sum().backward()
    assert_close([found[parameter] for parameter in inputs], [*expected])


@pytest.mark.parametrize('name', ['low', 'conv_low', 'transposed_low'])
def test_weights_of_which_coefficients_are_computed(name):
    """Stepped before the backward pass, they are an error, as the coefficients would be."""
    layer, x = build(name)
    weight_norm(layer, 'basis_weight')
    loss = layer(x).square().sum()
    with torch.no_grad():
        layer.parametrizations.basis_weight.original0.mul_(1.5)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


@pytest.mark.parametrize('name', ['low', 'conv_low', 'transposed_low'])
def test_a_spectral_norm_goes_one_step_a_pass(name):
    """Also where the layer computes again, which it does with the step of the forward pass."""
    layer, x = build(name)
    spectral_norm(layer, 'basis_weight')
    found = []
    for memory in ('fast', 'low'):
        each = copy.deepcopy(layer)
        each.memory = memory
        loss = each(x).square().sum()
        grads = [torch.autograd.grad(loss, list(each.parameters()), retain_graph=True) for _ in range(2)]
        found.append([*grads, *each.buffers()])
    assert_close(*found)


@every_layer
@pytest.mark.parametrize('frozen', [True, False])
def test_parameters_frozen_or_thawed_before_the_backward_pass(name, frozen):
    """As those of a discriminator, between the two losses of a step."""
    layer, x = build(name)
    layer.requires_grad_(not frozen)
    inputs = [x.requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]
    loss = layer(x).square().sum()
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    layer.requires_grad_(frozen)
    assert_close(torch.autograd.grad(loss, inputs[:1], retain_graph=True), expected[:1], rtol=0, atol=0)
    assert all(p.requires_grad == frozen for p in layer.parameters())
    layer.requires_grad_(not frozen)
    assert_close(torch.autograd.grad(loss, inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize('kind', ['linear', 'conv', 'shared'])
def test_a_scaler_after_an_update_of_the_grid(kind):
    """Its gradient needs the old coefficients."""
    layer, shape = dict(linear=(KANLinear(4, 3, with_scaler=True), ROWS),
                        conv=(KANConv2d(2, 3, 3, with_scaler=True), IMAGES),
                        shared=(SharedKANConv2d(3, basis=dict(type='BSpline')), IMAGES))[kind]
    x = torch.randn(shape)
    loss = layer(x).square().sum()
    layer.update_grid(3 * x)
    with pytest.raises(RuntimeError, match='modified by an inplace operation|changed its grid'):
        loss.backward()


@pytest.mark.parametrize('args', [dict(basis=dict(type='Fourier')), dict(memory='low'), {}], ids=str)
def test_a_random_base_function(args):
    layer, x = KANLinear(4, 3, base_act_cfg=dict(type='RReLU'), **args), torch.randn(5, 4, requires_grad=True)
    y = layer(x)
    found, = torch.autograd.grad(y.sum(), x)
    torch.manual_seed(1)
    base = layer.base_act(x.detach())
    torch.manual_seed(1)
    slope = torch.autograd.grad(layer(x).sum(), x)[0] - torch.autograd.grad(layer.eval()(x).sum(), x)[0]
    eval_slope = torch.where(x < 0, sum((1 / 8, 1 / 3)) / 2, 1.0)
    assert_close(slope, (base / x - eval_slope).detach() * layer.weight.sum(0))
    assert found.isfinite().all()


def test_random_numbers_in_a_block():
    block = RKANBlock(4, 4, act_cfg=dict(type='RReLU'))
    x, found = torch.randn(2, 4, 5, 5, requires_grad=True), []
    for block.with_cp in (False, True):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()]))
    assert_close(*found)


def test_two_threads_go_back_through_one_block_at_once():
    """Its batch norms rest meanwhile, and then go on as before."""
    block, x = RKANBlock(4, 4, last=True, with_cp=True), torch.randn(2, 4, 5, 5)
    start, inside = threading.Barrier(2), threading.Barrier(2)
    waited = threading.local()

    def wait(*args):
        if not hasattr(waited, 'once'):
            waited.once = True
            inside.wait(30)

    losses = [block(x).square().sum() for _ in range(2)]
    hook = block.norm2.register_forward_pre_hook(wait)

    def run(loss):
        start.wait(30)
        loss.backward()

    threads = [threading.Thread(target=run, args=(loss,)) for loss in losses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert block.norm1.momentum == block.norm2.momentum == 0.1
