"""Formulas in the place of functions: what they give, that they train, and that checkpoints hold them."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rkan_mm.inspection import LayerFunctions, formula
from rkan_mm.models import KANConv1d, KANConv2d, KANConvTranspose2d, KANLinear, SharedKANConv2d
from rkan_mm.models.layers.locked import FORMS, Fixed, lock, unlock

LAYERS = {
    'shared': (lambda: SharedKANConv2d((2, 3), stride=2, padding=1, dilation=(1, 2)), (2, 3, 9, 8), [(0, 2), (1, 0)]),
    'conv': (lambda: KANConv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), groups=2), (2, 4, 6, 7),
             [(0, 1, 0, 0), (5, 1, 1, 2), (3, 0, 0, 1)]),
    'reflect': (lambda: KANConv2d(2, 3, 3, padding=1, padding_mode='reflect'), (2, 2, 6, 7), [(2, 1, 0, 2)]),
    '1d': (lambda: KANConv1d(2, 3, 3, padding='same'), (2, 2, 9), [(1, 1, 2), (0, 0, 0)]),
    'transposed': (lambda: KANConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), (1, 4, 3, 3),
                   [(3, 2, 1, 2), (0, 0, 0, 0)]),
    'linear': (lambda: KANLinear(3, 4, basis=dict(type='Legendre')), (5, 6, 3), [(0, 2), (3, 0)]),
}
kinds = pytest.mark.parametrize('kind', LAYERS)


def made(kind: str) -> tuple[nn.Module, torch.Tensor, dict]:
    make, shape, places = LAYERS[kind]
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    forms = ['sin', 'x^2', 'gaussian']
    fixed = {place: Fixed(form, (0.7, 1.3, -0.2, 0.4)) for place, form in zip(places, forms, strict=False)}
    return layer, torch.randn(shape, dtype=torch.float64), fixed


@kinds
def test_only_locked_functions_change(kind):
    """A formula that is the function itself changes nothing; another one changes the output by the difference."""
    layer, x, fixed = made(kind)
    functions = LayerFunctions(layer)
    before = layer(x)
    locked = copy.deepcopy(layer)
    lock(locked, fixed)
    found = locked(x)
    assert not torch.allclose(found, before)
    # the difference by hand: one plane of differences for each function, put where its weight is
    difference = torch.zeros_like(before)
    for index, fix in fixed.items():
        if kind == 'shared':
            plane = fix(x) - functions.curve(index, x.flatten()).reshape(x.shape)
            plain = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, 0, layer.dilation, bias=False).double()
            plain.weight.data.zero_()[(0, 0, *index)] = 1
            padded = F.pad(x, (1, 1, 1, 1)).flatten(0, 1).unsqueeze(1)
            plane = fix(padded) - functions.curve(index, padded.flatten()).reshape(padded.shape)
            difference += plain(plane).reshape(before.shape)
            continue
        channel, out = functions.row(index), functions.output(index)
        if kind == 'linear':
            seen = x[..., channel]
            difference[..., out] += fix(seen) - functions.curve(index, seen.flatten()).reshape(seen.shape)
            continue
        seen = x[:, channel:channel + 1]
        if kind == 'transposed':
            plane = fix(seen) - functions.curve(index, seen.flatten()).reshape(seen.shape)
            weight = torch.zeros(1, 1, *layer.kernel_size, dtype=torch.float64)
            weight[(0, 0, *index[2:])] = 1
            difference[:, out:out + 1] += F.conv_transpose2d(plane, weight, None, layer.stride, layer.padding,
                                                             layer.output_padding)
            continue
        mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
        seen = F.pad(seen, layer._reversed_padding_repeated_twice, mode=mode)
        plane = fix(seen) - functions.curve(index, seen.flatten()).reshape(seen.shape)
        weight = torch.zeros(1, 1, *layer.kernel_size, dtype=torch.float64)
        weight[(0, 0, *index[2:])] = 1
        convolve = F.conv1d if kind == '1d' else F.conv2d
        difference[:, out:out + 1] += convolve(plane, weight, None, layer.stride, 0, layer.dilation)
    assert_close(found, before + difference)


@kinds
def test_inputs_without_a_batch_and_in_other_layouts(kind):
    layer, x, fixed = made(kind)
    lock(layer, fixed)
    assert_close(layer(x[0]), layer(x)[0])
    layer, x = layer.float(), x.float()
    if kind == 'linear':
        nested = layer(torch.nested.as_nested_tensor([x[0], x[1, :2]]))
        for part, right in zip(nested.unbind(), (layer(x[0]), layer(x[1, :2])), strict=True):
            assert_close(part, right)
        assert_close(layer(x[0].to_sparse()), layer(x[0]))
    if kind != 'reflect':  # which PyTorch's convolutions refuse, too
        with torch.no_grad():
            assert_close(layer(x.to_mkldnn()).to_dense(), layer(x))


@kinds
def test_constants_train_and_pruned_functions_do_not(kind):
    layer, x, fixed = made(kind)
    own = lock(layer, fixed)
    layer(x).square().sum().backward()
    assert (own.constants.grad.abs() > 0).all()
    optimizer = torch.optim.SGD(layer.parameters(), 1e-4)
    optimizer.step()
    assert own.functions() != fixed
    functions = LayerFunctions(layer)
    points = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for index, now in own.functions().items():
        assert_close(functions.curve(index, points), now(points).detach())


@kinds
def test_checkpoints_and_copies(kind):
    layer, x, fixed = made(kind)
    lock(layer, fixed)
    fresh = LAYERS[kind][0]().double()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert_close(fresh(x), layer(x), rtol=0, atol=0)
    assert fresh.locked.functions() == fixed
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(x), layer(x), rtol=0, atol=0)
        other.locked.constants.data[0, 3] += 1
        assert not torch.allclose(other(x), layer(x))


def test_formulas_know_of_locks():
    pytest.importorskip('sympy')
    layer = KANLinear(1, len(FORMS), bias=False).double()
    fixed = {(i, 0): Fixed(form, (0.7, 1.3, -0.2, 0.4)) for i, form in enumerate(FORMS)}
    lock(layer, fixed)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    found = formula(layer)
    for (i, _), function in found:
        assert_close(torch.from_numpy(function(x[:, 0].numpy()) + found.constant[i]), layer(x)[:, i].detach(),
                     rtol=1e-12, atol=1e-12)


def test_more_functions_later():
    layer, x, fixed = made('linear')
    (first, one), (second, other) = fixed.items()
    both = copy.deepcopy(layer)
    lock(both, fixed)
    lock(layer, {first: one})
    lock(layer, {second: other})
    assert_close(layer(x), both(x))
    assert len(layer._forward_hooks) == 1


def test_half_precision():
    layer = KANLinear(3, 2).half()
    lock(layer, {(0, 1): Fixed('exp', (1.0, 1.0, 0.0, 0.0))})
    assert layer.locked.constants.dtype == torch.float32
    assert layer(torch.randn(4, 3).half()).dtype == torch.float16


@pytest.mark.parametrize(('call', 'message'), [
    (lambda: Fixed('cosh', (1, 1, 0, 0)), "no form 'cosh'; there are constant, x, x\\^2"),
    (lambda: lock(KANLinear(2, 2), {(2, 0): Fixed('x', (1, 1, 0, 0))}),
     r'lock: no function \(2, 0\) in KANLinear, whose functions are \(2, 2\)'),
    (lambda: lock(KANLinear(2, 2, normalization=dict(type='LN')), {(0, 0): Fixed('x', (1, 1, 0, 0))}),
     'no formula of x can stand for them'),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['conv', 'linear', 'shared'])
def test_compiled_and_exported(kind):
    layer, x, fixed = made(kind)
    lock(layer, fixed)
    layer, x = layer.float().eval(), x.float()
    with torch.no_grad():
        expected = layer(x)
        assert_close(torch.compile(layer, fullgraph=True, backend='aot_eager')(x), expected)
        assert_close(torch.export.export(layer, (x,)).module()(x), expected)


@kinds
def test_locks_that_come_after_compiling(kind):
    """Compiled code sees no hook that comes later, and a pruned layer has a mask before it has formulas."""
    layer, x, fixed = made(kind)
    layer.prune(threshold=-1.0)
    torch.compiler.reset()
    compiled = torch.compile(nn.Sequential(layer), backend='eager')
    for change in (lambda: None, lambda: lock(layer, fixed), lambda: unlock(layer), lambda: lock(layer, fixed)):
        change()
        assert_close(compiled(x), layer(x))


def test_loading_another_lock():
    one, x, fixed = made('linear')
    other = copy.deepcopy(one)
    lock(one, fixed)
    lock(other, {(1, 1): Fixed('exp', (0.1, 1.0, 0.0, 0.0))})
    other.load_state_dict(one.state_dict())
    assert_close(other(x), one(x))
    assert other.locked.functions() == fixed


def replica(module: nn.Module, device: str = 'cpu') -> nn.Module:
    """As `nn.DataParallel` makes them, for GPUs alone."""
    copies = {each: each._replicate_for_data_parallel() for each in module.modules()}
    for each, own in copies.items():
        for name, child in each._modules.items():
            own._modules[name] = copies.get(child)
        for name, parameter in each._parameters.items():
            if parameter is None:
                own._parameters[name] = None
            else:
                setattr(own, name, parameter.to(device, copy=True))
        for name, buffer in each._buffers.items():
            own._buffers[name] = buffer.to(device, copy=True)
    return copies[module]


@kinds
def test_replicas(kind):
    """They have the formulas, and the mask comes to their device."""
    layer, x, fixed = made(kind)
    lock(layer, fixed)
    assert layer.mask is not None
    assert_close(replica(layer)(x), layer(x))
    assert replica(layer, 'meta')(x.to('meta')).is_meta


@kinds
def test_calls_bring_no_numbers_to_the_device(kind):
    """A GPU would be waited for, and a CUDA graph cannot be captured."""
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    def brought() -> int:
        names.clear()
        with torch.no_grad(), Record():
            layer(x)
        return names.count('aten::lift_fresh')

    layer, x, fixed = made(kind)
    names = []
    before = brought()
    lock(layer, fixed)
    assert brought() == before


def test_hooks_from_before_see_the_formulas():
    layer, x, fixed = made('linear')
    seen = []
    layer.register_forward_hook(lambda layer, args, out: seen.append(out))
    lock(layer, fixed)
    assert layer(x).equal(seen[0])
    del layer.locked
    assert not layer(x).allclose(seen[0])
    lock(layer, fixed)
    assert_close(layer(x), seen[0])
