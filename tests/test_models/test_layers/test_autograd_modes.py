"""Layers in every mode of autograd, in any order: caches and self-checks of one mode serve in another."""

import contextlib
import itertools
import threading

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rkan_mm.models import (
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANConvTranspose2d,
    KANLinear,
    RKANBlock,
    SharedKANConv2d,
    prune,
)
from rkan_mm.models.ops import compiled

MODES = dict(grad=contextlib.nullcontext, no_grad=torch.no_grad, inference=torch.inference_mode,
             autocast=lambda: torch.autocast('cpu', torch.bfloat16))
LAYERS = dict(
    spline_conv=(lambda: KANConv2d(2, 3, 3), (2, 2, 5, 5)),
    expand=(lambda: KANConv2d(2, 17, 3, basis=dict(type='Chebyshev')), (2, 2, 5, 5)),
    low_memory=(lambda: KANConv2d(2, 3, 3, memory='low'), (2, 2, 5, 5)),
    norm=(lambda: KANConv2d(2, 3, 3, normalization=dict(type='IN')), (2, 2, 5, 5)),
    conv1d=(lambda: KANConv1d(2, 3, 3, basis=dict(type='GaussianRBF')), (2, 2, 7)),
    conv3d=(lambda: KANConv3d(2, 3, 3), (2, 2, 3, 3, 3)),
    transposed=(lambda: KANConvTranspose2d(2, 3, 3), (2, 2, 5, 5)),
    linear=(lambda: KANLinear(4, 3), (5, 4)),
    scaler=(lambda: KANLinear(4, 3, with_scaler=True, basis=dict(type='Legendre')), (5, 4)),
    rational=(lambda: KANLinear(4, 3, basis=dict(type='Rational')), (5, 4)),
    shared=(lambda: SharedKANConv2d(3), (2, 2, 5, 5)),
    shared_splines=(lambda: SharedKANConv2d(3, basis=dict(type='BSpline')), (2, 2, 5, 5)),
    shared_patches=(lambda: SharedKANConv2d(3, normalization='min-max'), (2, 2, 5, 5)),
    block=(lambda: RKANBlock(4, 4, last=True).eval(), (2, 4, 5, 5)),
    block_with_cp=(lambda: RKANBlock(4, 4, last=True, with_cp=True).eval(), (2, 4, 5, 5)),
)
every_layer = pytest.mark.parametrize('name', LAYERS)


def build(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    return layer(), torch.randn(shape)


def gradients(layer, x):
    return torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))


@every_layer
def test_first_call_in_any_mode_then_another(name):
    layer, x = build(name)
    with torch.no_grad():
        expected = layer(x)
    expected_gradients = gradients(layer, x)
    for first, second in itertools.product(MODES, MODES):
        layer, x = build(name)
        compiled._load.cache_clear()
        for mode in (first, second):
            with MODES[mode]():
                y = layer(x)
            half = mode == 'autocast'
            assert_close(y.float(), expected, rtol=0.05 if half else 1e-6, atol=0.3 if half else 1e-6)
        assert_close(gradients(layer, x), expected_gradients)


CHANGES = dict(
    update_grid=lambda layer, x: layer.update_grid(2 * x), grow=lambda layer, x: layer.update_grid(5 * x, grow=True),
    refine_grid=lambda layer, x: layer.refine_grid(10), prune=lambda layer, x: layer.prune(0.5, x=x),
    prune_all=lambda layer, x: prune(layer, 0.5, lambda: layer(x)), reset=lambda layer, x: layer.reset_parameters(),
    load=lambda layer, x: layer.load_state_dict(finer(layer)),
    assign=lambda layer, x: layer.load_state_dict(finer(layer), assign=True),
)


@every_layer
def test_what_comes_from_inference_mode_is_taken_as_pytorch_takes_it(name, monkeypatch):
    """Its own operations refuse to save such a tensor for a backward pass; where none is to come, all is computed."""
    layer, x = build(name)
    with torch.inference_mode():
        x = x.clone()
    with torch.no_grad():
        expected = layer(x)
    found = []
    for kernels in '10':
        monkeypatch.setenv('RKAN_MM_KERNELS', kernels)
        try:
            found.append(gradients(layer, x))
        except RuntimeError as error:
            found.append(str(error))
    if isinstance(found[1], str):
        assert found[0] == found[1]
    else:
        assert_close(*found, rtol=1e-4, atol=1e-4)
    assert_close(layer.requires_grad_(False)(x), expected)


def finer(layer):
    with torch.inference_mode(False):
        other = KANConv2d(2, 3, 3) if isinstance(layer, KANConv2d) else KANLinear(4, 3)
        other.refine_grid(7)
        other.prune(0.2)
        return other.state_dict()


@pytest.mark.parametrize('name', ['spline_conv', 'linear'])
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('mode', ['grad', 'no_grad', 'inference', 'autocast'])
def test_what_changes_a_layer_does_so_in_any_mode(name, change, mode):
    layer, x = build(name)
    with MODES[mode]():
        CHANGES[change](layer, x)
    assert not any(t.is_inference() for t in (*layer.parameters(), *layer.buffers()))
    assert all(p.requires_grad for p in layer.parameters())
    assert all(g.isfinite().all() for g in gradients(layer, x))


def ensemble(layer, x):
    params, buffers = stack_module_state([layer, layer])
    return vmap(lambda p, b: functional_call(layer, (p, b), (x,)))(params, buffers)[1] - layer(x)


def per_sample(layer, x):
    gradient = grad(lambda p, each: functional_call(layer, p, (each[None],)).square().sum())
    found = vmap(gradient, (None, 0))(dict(layer.named_parameters()), x)
    expected = [gradients(layer, each[None]) for each in x]
    return torch.cat([(found[key][i] - g).flatten() / (1 + g.abs().max()) for i, grads in enumerate(expected)
                      for key, g in zip(found, grads, strict=True)])


def batched(layer, x):
    y = layer(x.requires_grad_())
    found, = torch.autograd.grad(y, x, torch.stack([torch.ones_like(y)] * 2), is_grads_batched=True)
    return found[1] - torch.autograd.grad(layer(x).sum(), x)[0]


def summed(f, x, forward=contextlib.nullcontext, backward=contextlib.nullcontext):
    """The gradient of x, with the passes in these modes."""
    x = x.clone().requires_grad_()
    with forward():
        y = f(x).sum()
    with backward():
        return torch.autograd.grad(y, x)[0]


def counting():
    return FlopCounterMode(display=False)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


TRANSFORMS = dict(  # each gives 0 where it is right
    vmap=lambda f, x: vmap(lambda each: f(each[None])[0])(x) - f(x),
    vmap_over_batches=lambda f, x: vmap(f)(torch.stack([x, x]))[1] - f(x),
    grad=lambda f, x: grad(lambda x: f(x).sum())(x) - torch.autograd.grad(f(x.requires_grad_()).sum(), x)[0],
    vjp=lambda f, x: vjp(f, x)[1](torch.ones_like(f(x)))[0] - torch.autograd.grad(f(x.requires_grad_()).sum(), x)[0],
    jvp=lambda f, x: jvp(f, (x,), (x,))[1] - torch.autograd.functional.jvp(f, x, x)[1],
    jacobians=lambda f, x: jacrev(f)(x) - jacfwd(f)(x),
    hessian=lambda f, x: hessian(lambda x: f(x).sum())(x) - torch.autograd.functional.hessian(lambda x: f(x).sum(), x),
    vectorized=lambda f, x: jacobian(f, x, vectorize=True) - jacobian(f, x),
    ensemble=ensemble, per_sample=per_sample, batched=batched,
    functionalize=lambda f, x: torch.func.functionalize(f)(x) - f(x),
    checkpoint=lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False) - f(x),
    columns=lambda f, x: vmap(f, in_dims=1)(torch.stack([x, x], 1))[1] - f(x),
    linearized=lambda f, x: linearize(f, x)[1](x) - jvp(f, (x,), (x,))[1],
    make_fx=lambda f, x: make_fx(f)(x)(2 * x) - f(2 * x),
    make_fx_early=lambda f, x: make_fx(f, pre_dispatch=True)(x)(2 * x) - f(2 * x),
    make_fx_early_no_grad=lambda f, x: torch.no_grad()(make_fx(f, pre_dispatch=True))(x)(2 * x) - f(2 * x),
    counted_forward=lambda f, x: summed(f, x, counting) - summed(f, x),
    counted_backward=lambda f, x: summed(f, x, backward=counting) - summed(f, x),
    watched_backward=lambda f, x: summed(f, x, backward=Watching) - summed(f, x),
    without_hooks=lambda f, x: summed(f, x, lambda: disable_saved_tensors_hooks('none')) - summed(f, x),
    backward_in_inference=lambda f, x: summed(f, x, backward=torch.inference_mode) - summed(f, x),
    backward_in_no_grad=lambda f, x: summed(f, x, backward=torch.no_grad) - summed(f, x),
    debugged=lambda f, x: summed(lambda x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False, debug=True), x)
    - summed(f, x),
    reentrant=lambda f, x: torch.utils.checkpoint.checkpoint(f, x.requires_grad_(), use_reentrant=True) - f(x),
)


@every_layer
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_transforms(name, transform):
    layer, x = build(name)
    if transform == 'hessian' and x.numel() > 50:
        x = x[:1]
    difference = TRANSFORMS[transform](layer.double() if transform == 'hessian' else layer,
                                       x.double() if transform == 'hessian' else x)
    assert difference.abs().max() < 1e-4


@every_layer
def test_parameters_that_are_stepped_before_the_backward_pass(name):
    """An error, as in PyTorch's layers, or the gradient from before."""
    if name == 'block_with_cp':  # as mm's blocks: torch.utils.checkpoint does not look
        return
    layer, x = build(name)
    for parameter in layer.parameters():
        y = layer(x.requires_grad_()).square().sum()
        expected, = torch.autograd.grad(y, x, retain_graph=True)
        with torch.no_grad():
            parameter.mul_(1.5)
        found, said = None, ''
        try:
            found, = torch.autograd.grad(y, x)
        except RuntimeError as error:
            said = str(error)
        assert 'modified by an inplace operation' in said or found.allclose(expected)


@pytest.mark.parametrize('memory', ['low', 'fast'])
def test_weights_of_a_first_layer_may_be_stepped_before_its_backward_pass(memory):
    """Their own gradients do not depend on them, where neither input nor functions have any: PyTorch lets one do so."""
    for layer, x in ((KANLinear(4, 3, memory=memory, basis=dict(type='Rational')), torch.randn(5, 4)),
                     (KANConv2d(2, 3, 3, memory=memory), torch.randn(2, 2, 5, 5))):
        layer.basis.requires_grad_(False)
        y = layer(x).sum()
        weights = [p for name, p in layer.named_parameters() if 'weight' in name]
        expected = torch.autograd.grad(y, weights, retain_graph=True)
        with torch.no_grad():
            for weight in weights:
                weight.mul_(1.5)
        assert_close(torch.autograd.grad(y, weights), expected)


@every_layer
def test_threads(name):
    """Eight of them at once, the first to use the layer, in different modes and with inputs of different sizes."""
    layer, x = build(name)
    sizes = [torch.cat([x] * n) for n in range(1, 9)]
    expected = [layer(size) for size in sizes]
    layer, _ = build(name)
    compiled._load.cache_clear()
    start, found = threading.Barrier(8), [None] * 8

    def run(i):
        start.wait()
        with list(MODES.values())[i % 3]():
            found[i] = [layer(sizes[i]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, right in zip(found, expected, strict=True):
        for result in results:
            assert_close(result, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('layer', [KANLinear(6, 4), KANConv2d(6, 4, 3)], ids=str)
def test_half_precision_into_autocast_is_not_asked_of_the_ordinary_layer(layer, monkeypatch):
    """Which would run at every step, for nothing."""
    x = torch.rand(2, 6, 6, 6, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        expected = layer(x)
        monkeypatch.setattr(layer, '_ordinary', None)
        assert layer(x).equal(expected)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match='dtype|same'):
        layer(x)
