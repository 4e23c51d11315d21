"""Layers that are built without memory or in another mode, and filled or used later."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from rkan_mm.models import KANConv2d, KANConvTranspose2d, KANLinear, RKANBlock, SharedKANConv2d

BASES = dict(
    spline=dict(type='BSpline'), splines=dict(type='BSpline', per_channel=False, grid_range=(-2, 3)),
    gaussian=dict(type='GaussianRBF'), gaussians=dict(type='GaussianRBF', per_channel=True, width=0.7),
    trained=dict(type='RSWAF', trainable_grid=True, trainable_width=True), bells=dict(type='ReLUKAN'),
    wavelet=dict(type='Wavelet'), rational=dict(type='Rational'), chebyshev=dict(type='Chebyshev'))
LAYERS = dict(linear=(lambda **a: KANLinear(4, 3, **a), (5, 4)),
              conv=(lambda **a: KANConv2d(4, 3, 3, **a), (2, 4, 7, 7)),
              transposed=(lambda **a: KANConvTranspose2d(4, 3, 3, **a), (2, 4, 7, 7)),
              shared=(lambda **a: SharedKANConv2d(3, **a), (2, 4, 7, 7)))
matrix = [pytest.mark.parametrize('basis', BASES), pytest.mark.parametrize('kind', LAYERS)]


def every(function):
    for mark in matrix:
        function = mark(function)
    return function


def reset(module):
    """As FSDP does with what was built on the meta device."""
    for each in module.modules():
        if hasattr(each, 'reset_parameters'):
            each.reset_parameters()


def fixed(layer):
    """Its state but for what is drawn at random."""
    return {name: value for name, value in layer.state_dict().items() if name.startswith('basis.')}


@every
def test_to_empty_then_reset_parameters_is_a_new_layer(kind, basis):
    build, shape = LAYERS[kind]
    with torch.device('meta'):
        layer = build(basis=BASES[basis])
    layer.to_empty(device='cpu')
    for tensor in (*layer.parameters(), *layer.buffers()):
        tensor.data.fill_(float('nan'))
    for how in (reset, lambda module: module.reset_parameters()):
        how(layer)
        assert_close(fixed(layer), fixed(build(basis=BASES[basis])), rtol=0, atol=0)
        assert layer(torch.randn(shape)).isfinite().all()


class OnApple(TorchFunctionMode):
    """Each tensor says that it is on an Apple GPU, where nothing is made in double precision."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.device.__get__:
            return torch.device('mps')
        kwargs = kwargs or {}
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.device))
        there = [device for device in given if device.type == 'mps']

        def here(value):
            return torch.device('cpu') if any(value is each for each in there) else value

        made = func(*map(here, args), **{name: here(value) for name, value in kwargs.items()})
        if there and made.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return made


@every
def test_reset_parameters_without_double_precision(kind, basis):
    layer = LAYERS[kind][0](basis=BASES[basis])
    expected = copy.deepcopy(fixed(layer))
    with OnApple():
        layer.reset_parameters()
    assert_close(fixed(layer), expected, rtol=0, atol=0)


@every
def test_reset_parameters_after_the_grid_has_moved(kind, basis):
    build, shape = LAYERS[kind]
    layer = build(basis=BASES[basis])
    if hasattr(layer.basis, 'grid'):
        layer.update_grid(3 * torch.randn(shape))
        layer.reset_parameters()
        assert_close(fixed(layer), fixed(build(basis=BASES[basis])))
        layer.refine_grid(9)
    size = {name: value.shape for name, value in layer.state_dict().items()}
    reset(layer)
    assert {name: value.shape for name, value in layer.state_dict().items()} == size
    assert layer(torch.randn(shape)).isfinite().all()


def test_patches_scaled_by_a_parameter_and_whole_blocks():
    for build in (lambda: SharedKANConv2d(3, normalization='arctan'),
                  lambda: RKANBlock(4, 8, 2, last=True, basis=dict(type='BSpline'))):
        with torch.device('meta'):
            module = build()
        module.to_empty(device='cpu')
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.fill_(99)
        reset(module)
        assert module(torch.randn(2, 4, 8, 8)).isfinite().all()
        assert all(value.abs().max() < 99 for value in module.state_dict().values())


@every
def test_on_the_meta_device_then_loaded(kind, basis):
    build, shape = LAYERS[kind]
    right, x = build(basis=BASES[basis]), torch.randn(shape)
    for assign in (False, True):
        with torch.device('meta'):
            layer = build(basis=BASES[basis])
        if not assign:
            layer.to_empty(device='cpu')
        layer.load_state_dict(right.state_dict(), assign=assign)
        assert_close(layer(x), right(x))


@every
@pytest.mark.parametrize('mode', ['no_grad', 'inference_mode'])
def test_built_and_changed_in_a_mode(kind, basis, mode):
    build, shape = LAYERS[kind]
    x = torch.randn(shape)
    with getattr(torch, mode)():
        layer = build(basis=BASES[basis])
        expected = layer(x)
    for other in (torch.no_grad, torch.inference_mode, *([contextlib.nullcontext] if mode == 'no_grad' else [])):
        with torch.no_grad():
            changed = copy.deepcopy(layer)
        with other():
            assert_close(layer(x), expected)
            if hasattr(layer.basis, 'grid'):
                assert changed.update_grid(3 * x)
                changed.refine_grid(9)
            changed.prune(0.5)
            assert changed(x).isfinite().all()


def test_by_torch_without_initialisation():
    for cls, args in ((KANLinear, (4, 3)), (KANConv2d, (4, 3, 3))):
        layer = nn.utils.skip_init(cls, *args, dtype=torch.float64)
        layer.reset_parameters()
        assert all(value.dtype == torch.float64 for value in layer.state_dict().values())
        x = torch.randn(4, 4, 4, 4, dtype=torch.float64)
        assert layer(x).isfinite().all()


@every
def test_of_fake_tensors(kind, basis):
    """As tools build a model that ask for its memory and shapes alone."""
    build, shape = LAYERS[kind]
    with FakeTensorMode():
        layer, x = build(basis=BASES[basis]), torch.randn(shape)
        layer(x).sum().backward()
        assert layer.eval()(x).shape == build(basis=BASES[basis])(x).shape
    assert type(layer).__name__ in repr(nn.Sequential(layer))


@pytest.mark.parametrize(('kind', 'dtype'), [('linear', torch.float64), ('conv', torch.float64),
                                             ('conv', torch.bfloat16)])
def test_an_activation_with_parameters_is_where_the_layer_is(kind, dtype):
    build, shape = LAYERS[kind]
    act = dict(type='PReLU')
    layer = build(base_act_cfg=act, dtype=dtype)
    assert layer(torch.randn(shape, dtype=dtype)).dtype == layer.base_act.weight.dtype == dtype
    assert build(base_act_cfg=act, device='meta').base_act.weight.is_meta
    with torch.device('meta'):
        layer = build(base_act_cfg=act)
    reset(layer.to_empty(device='cpu'))
    assert layer.base_act.weight.item() == 0.25
    assert layer(torch.randn(shape)).isfinite().all()


@every
def test_a_layer_draws_alike_whatever_the_default_device_is(kind, basis):
    layers = []
    for device in ('cpu', 'meta'):
        layers.append(LAYERS[kind][0](basis=BASES[basis], **dict(start='orthonormal') if kind == 'shared' else {}))
        with torch.device(device):
            torch.manual_seed(0)
            layers[-1].reset_parameters()
    assert_close(layers[1].state_dict(), layers[0].state_dict(), rtol=0, atol=0)
